"""What a batch's answers are worth: one entry of the results for each sample."""

import math
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from kv_compression.generation import Generation
from longctx.answers import is_answer
from longctx.prompts import Prompt
from longctx.task import Sample, Task


def scored_samples(
    task: Task,
    batch: Sequence[tuple[Sample, Prompt]],
    result: Generation,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt_is_raw: bool,
    compared: Sequence[str],
    has_quality: bool,
) -> list[dict[str, Any]]:
    """The samples of a request's row, in the order of `batch`.

    compared: answers of which the most probable one is the prediction; none to read the text.
    has_quality: False where weights are random: scores and `answered` are None.
    """
    texts = tokenizer.batch_decode(
        result.new_tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    answers = [
        task.answer(text, sample, prompt_is_raw)
        for text, (sample, _) in zip(texts, batch, strict=True)
    ]
    log_probs = [dict(zip(compared, mine, strict=True)) for mine in result.choice_log_probs]
    if compared:
        answers = [_most_probable(mine) for mine in log_probs]
    scores: list[dict[str, float | None]] = [dict.fromkeys(task.score_names) for _ in batch]
    if has_quality:
        scores = task.score(answers, [sample.references for sample, _ in batch])
    return [
        {
            "sample_id": sample.sample_id,
            "document_id": sample.document_id,
            "prompt_tokens": len(prompt.input_ids),
            "document_tokens": prompt.document_tokens,
            "dropped_tokens": prompt.dropped_tokens,
            "evidence_kept": _evidence_kept(sample, prompt),
            "new_tokens": len(new_tokens),
            "prediction": answer,
            "output": text,
            "references": sample.references,
            "answered": is_answer(answer) if has_quality else None,
            **({"choice_log_probs": mine} if compared else {}),
            **score,
            **sample.extra,
        }
        for (sample, prompt), new_tokens, answer, text, score, mine in zip(
            batch, result.new_tokens, answers, texts, scores, log_probs, strict=True
        )
    ]


def _most_probable(log_probs: dict[str, float]) -> str:
    """The answer of the highest probability; empty where a model gives none at all."""
    if any(math.isnan(value) for value in log_probs.values()):
        return ""
    return max(log_probs, key=lambda answer: log_probs[answer])


def _evidence_kept(sample: Sample, prompt: Prompt) -> bool | None:
    """Whether all that the answer rests on is still in the prompt; None where nobody knows it."""
    if not sample.evidence:
        return None
    return all(text in prompt.context for text in sample.evidence)
