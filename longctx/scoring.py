"""What a batch's answers are worth: one entry of the results for each sample."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from kv_compression.generation import Generation
from longctx import statistics, thinking
from longctx.answers import is_answer
from longctx.metrics.exact import References, Scores, Texts
from longctx.prompts import Prompt
from longctx.task import Sample, Task

_SHUFFLES = 3


def scored_samples(
    task: Task,
    batch: Sequence[tuple[Sample, Prompt]],
    result: Generation,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt_is_raw: bool,
    compared: Sequence[str],
    has_quality: bool,
    save_prompts: bool = False,
) -> list[dict[str, Any]]:
    """The samples of a request's row, in the order of `batch`.

    compared: answers of which the most probable one is the prediction; none to read the text.
    has_quality: False where weights are random: scores and `answered` are None.
    save_prompts: whether each sample holds its prompt's text.
    """
    new_tokens = [
        tokens[: prompt.answer_tokens]
        for tokens, (_, prompt) in zip(result.new_tokens, batch, strict=True)
    ]
    texts = thinking.texts_of(tokenizer, new_tokens)
    # A template may open the thought at the prompt's end, where the text does not show it.
    opened = [thinking.opened_by(prompt.text) for _, prompt in batch]
    seen = [mark + text for mark, text in zip(opened, texts, strict=True)]
    samples = [sample for sample, _ in batch]
    answers = [task.answer(*both, prompt_is_raw) for both in zip(seen, samples, strict=True)]
    log_probs = [dict(zip(compared, mine, strict=True)) for mine in result.choice_log_probs]
    if compared:
        answers = [_most_probable(mine) for mine in log_probs]
    scores: Scores = [{} for _ in batch]
    references = [sample.references for sample in samples]
    if has_quality:
        extras = [sample.extra for sample in samples]
        scores = all_scores(task, answers, None if compared else seen, references, extras)
    return [
        {
            "sample_id": sample.sample_id,
            "document_id": sample.document_id,
            "question": sample.asked,
            "prompt_tokens": len(prompt.input_ids),
            "document_tokens": prompt.document_tokens,
            "dropped_tokens": prompt.dropped_tokens,
            "evidence_kept": _evidence_kept(sample, prompt),
            "new_tokens": len(tokens),
            "thought_tokens": _thought_tokens(tokenizer, text, output, len(tokens)),
            **({"prompt": prompt.text} if save_prompts else {}),
            "prediction": answer,
            "output": output,
            "references": sample.references,
            "answered": is_answer(answer) if has_quality else None,
            **({"choice_log_probs": mine} if compared else {}),
            **{name: score.get(name) for name in task.score_names},
            **sample.extra,
        }
        for (sample, prompt), tokens, answer, output, text, score, mine in zip(
            batch, new_tokens, answers, texts, seen, scores, log_probs, strict=True
        )
    ]


def all_scores(
    task: Task,
    answers: Texts,
    texts: Texts | None,
    references: References,
    samples: Sequence[Mapping[str, Any]],
) -> Scores:
    """Scores by name of each sample.

    texts: whole outputs, for official scripts that read these; None where nothing was generated.
    samples: what the results say of each, at least its own data set's fields.
    """
    scores = task.scores(answers, references, samples)
    if task.score_texts is None or texts is None:
        return scores
    official = task.score_texts([thinking.answer(text) for text in texts], references)
    return [mine | other for mine, other in zip(scores, official, strict=True)]


def floors(task: Task, rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, float | None]:
    """`{score}_floor`: the mean score that answers get against the references of other samples.

    What an answer is worth that knows nothing of its question. Each is scored against up to three
    other samples, drawn by `seed`, without those of its own document.
    """
    samples = [sample for row in rows for sample in row["samples"]]
    scored = [s for s in samples if any(s.get(name) is not None for name in task.score_names)]
    rng = random.Random(f"{seed}/floor")
    pairs = []
    for sample in scored:
        others = [s for s in scored if _document(s) != _document(sample)]
        drawn = rng.sample(others, min(_SHUFFLES, len(others)))
        pairs += [(sample["prediction"], other) for other in drawn]
    predictions, others = [one for one, _ in pairs], [other for _, other in pairs]
    references = [other["references"] for other in others]
    scores = task.scores(predictions, references, others) if pairs else []
    found = {
        name: [value for s in scores if (value := s.get(name)) is not None]
        for name in task.score_names
    }
    return {f"{name}_floor": statistics.mean(mine) for name, mine in found.items()}


def _document(sample: dict[str, Any]) -> Any:
    return sample.get("document_id", sample["sample_id"])


def _most_probable(log_probs: dict[str, float]) -> str:
    """The answer of the highest probability; empty where a model gives none at all."""
    if any(math.isnan(value) for value in log_probs.values()):
        return ""
    return max(log_probs, key=lambda answer: log_probs[answer])


def _thought_tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, output: str, new_tokens: int
) -> int:
    """How many of the new tokens are the thought's, its marks included.

    text: the output behind what the prompt had of the thought.
    """
    thought, answer = thinking.split(text)
    if not (thought and answer):
        return new_tokens if thought else 0
    made = thought[len(text) - len(output) :]
    return min(new_tokens, len(tokenizer(made, add_special_tokens=False)["input_ids"]))


def _evidence_kept(sample: Sample, prompt: Prompt) -> bool | None:
    """Whether all that the answer rests on is still in the prompt; None where nobody knows it."""
    if not sample.evidence:
        return None
    return all(text in prompt.context for text in sample.evidence)
