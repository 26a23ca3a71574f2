"""LongBench-v2: a question with four choices about a long document.

The prompt is the benchmark's zero-shot prompt, the document is cut in the middle, and the letter is
read as the benchmark reads it ("The correct answer is (X)"), or, where a model answers in another
form, from what cannot be misread; `em_official` is by the benchmark's own reading.
ANSWER_MODE=loglikelihood compares the four letters' probabilities behind "The correct answer is ("
in place of generating.
"""

from dataclasses import dataclass
from typing import Any

from longctx import synthetic
from longctx.cli import main
from longctx.config import variable
from longctx.metrics.exact import letter_score, official_letter_score
from longctx.multiple_choice import letter_of
from longctx.prompts import PromptParts
from longctx.records import Fields
from longctx.settings import Count, Settings, redefault
from longctx.task import Sample, Task

LETTERS = ("A", "B", "C", "D")
EXAMPLE = """\
{"context": "The whole document.", "question": "Who ran?",
 "choices": ["Zoë", "Bo", "Ann", "Max"],
 "answer": "A"}"""


@dataclass(frozen=True)
class LongBenchSettings(Settings):
    """The shared settings, with LongBench-v2's defaults."""

    dataset_id: str = redefault("dataset_id", "zai-org/LongBench-v2")
    split: str = redefault("split", "train")
    max_new_tokens: Count = redefault(
        "max_new_tokens", 128, unused_when=("ANSWER_MODE", "loglikelihood")
    )
    logdir: str = redefault("logdir", "./logs/longbench")
    answer_mode: str = variable(
        "generate",
        "read the letter from the text generated, or compare the four letters' probabilities, "
        "which loses no answer to its form",
        choices=("generate", "loglikelihood"),
        of="samples",
    )


def sample(record: dict[str, Any], number: int, settings: LongBenchSettings) -> Sample:
    """A Sample of a record in the schema of `zai-org/LongBench-v2`, or of plain columns."""
    with Fields(record) as fields:
        choices = fields.choices(LETTERS)
        listed = "\n".join(f"({letter}) {text}" for letter, text in choices.items())
        question = fields.text("question").strip()
        return Sample(
            sample_id=fields.label("_id", "id") or f"record-{number}",
            parts=PromptParts(
                before="Please read the following text and answer the question below.\n\n<text>\n",
                document=fields.text("context", may_be_blank=True).strip(),
                after="\n</text>\n\nWhat is the correct answer to this question: "
                f"{question}\nChoices:\n{listed}\n\n"
                'Format your response as follows: "The correct answer is (insert answer here)".',
                answer_start="The correct answer is (" if compared_answers(settings) else "",
            ),
            question=question,
            references=[fields.letter("answer", choices)],
            evidence=fields.texts("evidence"),
            choices=choices,
            extra={name: fields.label(name) for name in ("difficulty", "length")},
        )


def answer(text: str, sample: Sample, prompt_is_raw: bool) -> str:
    """The letter in a model's text."""
    return letter_of(text, sample.choices, prompt_is_raw)


def compared_answers(settings: LongBenchSettings) -> tuple[str, ...]:
    """The letters whose probabilities are compared, where ANSWER_MODE says so."""
    return LETTERS if settings.answer_mode == "loglikelihood" else ()


TASK = Task(
    name="longbench_kv",
    settings=LongBenchSettings,
    sample=sample,
    synthesize={"synthetic": synthetic.four_choices},
    answer=answer,
    score=letter_score,
    score_texts=official_letter_score,
    score_names=("em", "em_official"),
    needs_chat_turn=True,
    groups=("difficulty", "length"),
    chance=0.25,
    compared_answers=compared_answers,
    example=EXAMPLE,
)

if __name__ == "__main__":
    main(TASK, __doc__)
