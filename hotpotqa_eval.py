"""HotpotQA, distractor setting: answer a question whose answer takes two of several paragraphs.

The prompt is LongBench's for HotpotQA, exact match and F1 are those of HotpotQA's official script.
A supporting sentence that truncation cut away cannot be used, so each sample says whether all of
them were left (`evidence_kept`), and scores are given for both cases.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from longctx import synthetic
from longctx.answers import free_text
from longctx.cli import main
from longctx.metrics.exact import hotpot_score
from longctx.prompts import PromptParts
from longctx.records import EXAMPLE, Fields
from longctx.settings import Contexts, Count, Settings, redefault
from longctx.task import Sample, Task

INSTRUCTIONS = (
    "Answer the question based on the given passages. Only give me the answer and do not output "
    "any other words."
)


@dataclass(frozen=True)
class HotpotQASettings(Settings):
    """The shared settings, with HotpotQA's defaults."""

    dataset_id: str = redefault("dataset_id", "hotpotqa/hotpot_qa")
    dataset_config: str | None = redefault("dataset_config", "distractor")
    split: str = redefault("split", "validation")
    contexts: Contexts = redefault("contexts", (512, 2048, 8192))
    max_new_tokens: Count = redefault("max_new_tokens", 32)
    logdir: str = redefault("logdir", "./logs/hotpotqa")


def passage(number: int, title: str, sentences: list[str]) -> str:
    """A paragraph as it stands in the document; numbers start at 1."""
    return f"Passage {number}:\n{title}\n{''.join(sentences)}\n"


def paragraphs_of(fields: Fields) -> tuple[str, list[str]]:
    """The document, and the sentences of it that the answer rests on."""
    context, facts = fields.value("context"), fields.value("supporting_facts")
    if not isinstance(context, dict):
        return fields.text("context", may_be_blank=True), fields.texts("evidence")
    titles, paragraphs = fields.texts("context.title"), fields.paragraphs("context.sentences")
    fields.match("context", titles, paragraphs)
    document = "".join(map(passage, range(1, len(titles) + 1), titles, paragraphs)).rstrip("\n")
    if facts is None:
        return document, fields.texts("evidence")
    named = fields.texts("supporting_facts.title"), fields.indices("supporting_facts.sent_id")
    fields.match("supporting_facts", *named)
    sentences_of = dict(zip(titles, paragraphs, strict=False))
    # Some records name a sentence that the paragraph does not have.
    return document, [
        sentences_of[title][index].strip()
        for title, index in zip(*named, strict=False)
        if index < len(sentences_of.get(title, ()))
    ]


def sample(record: dict[str, Any], number: int, _settings: HotpotQASettings) -> Sample:
    """A Sample of a record in the schema of `hotpotqa/hotpot_qa`, or of plain columns."""
    with Fields(record) as fields:
        document, evidence = paragraphs_of(fields)
        question = fields.text("question").strip()
        return Sample(
            sample_id=fields.label("id", "_id") or f"record-{number}",
            parts=PromptParts(
                before=f"{INSTRUCTIONS}\n\nThe following are given passages.\n",
                document=document,
                after=f"\n\n{INSTRUCTIONS}\n\nQuestion: {question}\nAnswer:",
            ),
            question=question,
            references=fields.references("answer", "answers"),
            evidence=evidence,
            extra={"type": fields.label("type")},
        )


TASK = Task(
    name="hotpotqa",
    settings=HotpotQASettings,
    sample=sample,
    synthesize={"synthetic": partial(synthetic.two_hop, passage=passage)},
    answer=free_text,
    score=hotpot_score,
    score_names=("em", "f1"),
    needs_chat_turn=True,
    groups=("type", "evidence_kept"),
    example=EXAMPLE,
)

if __name__ == "__main__":
    main(TASK, __doc__)
