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
from longctx.metrics.exact import hotpot_score
from longctx.prompts import Parts
from longctx.runner import main
from longctx.settings import Contexts, PositiveInt, Settings, redefault
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
    max_new_tokens: PositiveInt = redefault("max_new_tokens", 32)
    logdir: str = redefault("logdir", "./logs/hotpotqa")


def passage(number: int, title: str, sentences: list[str]) -> str:
    """A paragraph as it stands in the document; numbers start at 1."""
    return f"Passage {number}:\n{title}\n{''.join(sentences)}\n"


def sample(record: dict[str, Any], _number: int, _settings: HotpotQASettings) -> Sample:
    """A Sample of a record in the schema of `hotpotqa/hotpot_qa`."""
    context, facts = record["context"], record["supporting_facts"]
    paragraphs = list(zip(context["title"], context["sentences"], strict=True))
    sentences_of = dict(paragraphs)
    # Some records name a sentence that the paragraph does not have.
    evidence = [
        sentences_of[title][index].strip()
        for title, index in zip(facts["title"], facts["sent_id"], strict=True)
        if index < len(sentences_of.get(title, ()))
    ]
    passages = (passage(number, *paragraph) for number, paragraph in enumerate(paragraphs, 1))
    return Sample(
        sample_id=record["id"],
        parts=Parts(
            before=f"{INSTRUCTIONS}\n\nThe following are given passages.\n",
            document="".join(passages).rstrip("\n"),
            after=f"\n\n{INSTRUCTIONS}\n\nQuestion: {record['question'].strip()}\nAnswer:",
        ),
        references=[record["answer"]] if record["answer"] else [],
        evidence=evidence,
        extra={"type": record["type"]},
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
)

if __name__ == "__main__":
    main(TASK, __doc__)
