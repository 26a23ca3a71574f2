"""NarrativeQA: answer a question about a whole book or film script.

Prompt and protocol follow LongBench's NarrativeQA: the document is cut in the middle to fill the
context, decoding is greedy, and every score is the best over the references. The document is the
story, without Project Gutenberg's header and licence.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longctx import gutenberg, synthetic
from longctx.answers import free_text
from longctx.cli import main
from longctx.config import variable
from longctx.metrics import meteor_rouge
from longctx.metrics.exact import References, Scores, Texts, answer_score, official_f1_score
from longctx.prompts import PromptParts
from longctx.records import EXAMPLE, Fields
from longctx.settings import Count, Settings, redefault
from longctx.task import Sample, Task

INSTRUCTIONS = (
    "You are given a story, which can be either a novel or a movie script, and a question. Answer "
    "the question as concisely as you can, using a single phrase if possible. Do not provide any "
    "explanation."
)


@dataclass(frozen=True)
class NarrativeQASettings(Settings):
    """The shared settings, with NarrativeQA's defaults."""

    dataset_id: str = redefault("dataset_id", "deepmind/narrativeqa")
    max_new_tokens: Count = redefault("max_new_tokens", 128)
    logdir: str = redefault("logdir", "./logs/narrativeqa")
    use_summary: bool = variable(False, "the summary in place of the full text", of="samples")


def sample(record: dict[str, Any], number: int, settings: NarrativeQASettings) -> Sample:
    """A Sample of a record in the schema of `deepmind/narrativeqa`, or of plain columns."""
    with Fields(record) as fields:
        document = (
            fields.text("document.summary.text")
            if settings.use_summary
            else gutenberg.story(fields.text("document.text", "context", may_be_blank=True))
        )
        depth = fields.number("question.answer_depth")
        question = fields.text("question.text", "question").strip()
        return Sample(
            sample_id=f"{fields.label('document.id', 'id') or 'record'}-{number}",
            parts=PromptParts(
                before=f"{INSTRUCTIONS}\n\nStory: ",
                document=document,
                after=f"\n\nNow answer the question based on the story.\n\n"
                f"Question: {question}\n\nAnswer:",
            ),
            question=question,
            references=fields.references("answers", "answer"),
            evidence=fields.texts("question.evidence", "evidence"),
            extra={} if depth is None else {"answer_depth": depth},
        )


def score(predictions: Texts, references: References) -> Scores:
    """All scores of answers in words, best over their references, from 0 to 1."""
    exact = answer_score(predictions, references)
    overlapping = meteor_rouge.score(predictions, references)
    return [mine | other for mine, other in zip(exact, overlapping, strict=True)]


def key_scores(_settings: NarrativeQASettings, samples: Sequence[Sample]) -> tuple[str, ...]:
    """Whether the answer holds the key, where keys are asked for: each reference is one word with a
    digit in it.
    """
    references = [reference.strip() for sample in samples for reference in sample.references]
    are_keys = bool(references) and all(re.fullmatch(r"(?=\S*\d)\S+", r) for r in references)
    return ("contains", "em") if are_keys else ()


TASK = Task(
    name="narrativeqa",
    settings=NarrativeQASettings,
    sample=sample,
    synthesize={"synthetic": synthetic.stories, "synthetic-passkey": synthetic.pass_keys},
    answer=free_text,
    score=score,
    score_names=("f1", "f1_official", *meteor_rouge.SCORE_NAMES),
    data_scores=key_scores,
    score_texts=official_f1_score,
    check_scores=meteor_rouge.check,
    example=EXAMPLE,
)

if __name__ == "__main__":
    main(TASK, __doc__)
