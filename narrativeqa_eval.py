"""NarrativeQA: answer a question about a whole book or film script.

Prompt and protocol follow LongBench's NarrativeQA: the document is cut in the middle to fill the
context, decoding is greedy, and every score is the best over the references.
"""

from dataclasses import dataclass
from typing import Any

from longctx import synthetic
from longctx.answers import free_text
from longctx.config import variable
from longctx.metrics import overlap
from longctx.prompts import Parts
from longctx.records import EXAMPLE, Fields
from longctx.runner import main
from longctx.settings import Settings, redefault
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
    logdir: str = redefault("logdir", "./logs/narrativeqa")
    use_summary: bool = variable(False, "the summary in place of the full text")


def sample(record: dict[str, Any], number: int, settings: NarrativeQASettings) -> Sample:
    """A Sample of a record in the schema of `deepmind/narrativeqa`, or of plain columns."""
    with Fields(record) as fields:
        document = (
            fields.text("document.summary.text")
            if settings.use_summary
            else fields.text("document.text", "context", may_be_blank=True)
        )
        depth = fields.number("question.answer_depth")
        return Sample(
            sample_id=f"{fields.label('document.id', 'id') or 'record'}-{number}",
            parts=Parts(
                before=f"{INSTRUCTIONS}\n\nStory: ",
                document=document,
                after=f"\n\nNow answer the question based on the story.\n\n"
                f"Question: {fields.text('question.text', 'question').strip()}\n\nAnswer:",
            ),
            references=fields.references("answers", "answer"),
            evidence=fields.texts("question.evidence", "evidence"),
            extra={} if depth is None else {"answer_depth": depth},
        )


TASK = Task(
    name="narrativeqa",
    settings=NarrativeQASettings,
    sample=sample,
    synthesize={"synthetic": synthetic.stories, "synthetic-passkey": synthetic.pass_keys},
    answer=free_text,
    score=overlap.score,
    score_names=overlap.SCORE_NAMES,
    check_scores=overlap.check,
    example=EXAMPLE,
)

if __name__ == "__main__":
    main(TASK, __doc__)
