"""RULER: needles, chains of variables, frequent words and questions, in thirteen tasks.

Data are of kvpress' layout, https://huggingface.co/datasets/simonjegou/ruler: what is pruned with
KV_SCOPE=context is the context, and the answer begins behind the chat turn. The score is RULER's:
the share of the answers that occur in the output, for questions whether any of them does. An answer
has as many tokens as RULER gives its task, and MAX_NEW_TOKENS at most.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from longctx import synthetic, thinking
from longctx.cli import main
from longctx.config import variable
from longctx.errors import SettingError
from longctx.metrics.exact import string_match_all, string_match_part
from longctx.prompts import PromptParts
from longctx.records import Fields
from longctx.settings import Contexts, Count, Settings, redefault
from longctx.task import Sample, Score, Task

EXAMPLE = """\
{"context": "... Zoë's number is 4711. ...",
 "question": "What is Zoë's number?",
 "answer_prefix": "Zoë's number is", "answer": ["4711"],
 "task": "niah_single_2", "max_new_tokens": 128}"""


@dataclass(frozen=True)
class RulerSettings(Settings):
    """The shared settings, with RULER's defaults."""

    dataset_id: str = redefault("dataset_id", "simonjegou/ruler")
    dataset_config: str | None = redefault("dataset_config", "{context}")
    n_samples: Count = redefault("n_samples", 130, help="samples, one of each task in turn")
    contexts: Contexts = redefault("contexts", (4096, 8192, 16384))
    truncate: str = redefault("truncate", "never")
    max_new_tokens: Count = redefault("max_new_tokens", 128)
    logdir: str = redefault("logdir", "./logs/ruler")
    tasks: tuple[str, ...] = variable(
        (), "the tasks to run; unset: all", choices=synthetic.RULER_TASKS, of="samples"
    )


def in_turn(settings: RulerSettings, records: Iterator[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """The records of TASKS, one of each task in turn, named by their task. Raises SettingError."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    others: dict[str, None] = {}
    for record in records:
        task = str(record.get("task"))
        if settings.tasks and task not in settings.tasks:
            others[task] = None
            continue
        mine = by_task.setdefault(task, [])
        if len(mine) < settings.n_samples:
            mine.append({"id": f"{task}-{len(mine):04d}", **record})
    for task in settings.tasks:
        if task not in by_task:
            known = ", ".join(sorted({*by_task, *others})) or "no records"
            raise SettingError("TASKS", task, f"is not in {settings.dataset_id}, which has {known}")
    listed = [by_task[task] for task in settings.tasks or by_task]
    return filter(None, chain.from_iterable(zip_longest(*listed)))


def sample(record: dict[str, Any], number: int, _settings: RulerSettings) -> Sample:
    """A Sample of a record in the schema of `simonjegou/ruler`."""
    with Fields(record) as fields:
        task = fields.text("task").strip()
        question = fields.text("question", may_be_blank=True)
        tokens, depth = fields.number("max_new_tokens"), fields.number("answer_depth")
        if tokens is None or tokens < 1 or tokens != int(tokens):
            fields.fault(f"its max_new_tokens is {record.get('max_new_tokens')}")
        return Sample(
            sample_id=fields.label("id") or f"record-{number}",
            parts=PromptParts(
                before="",
                document=fields.text("context", may_be_blank=True),
                after=question,
                answer_start=fields.text("answer_prefix", may_be_blank=True),
                answer_tokens=int(tokens or 1),
            ),
            question=question.strip(),
            references=fields.references("answer", "answers"),
            evidence=fields.texts("evidence"),
            extra={"task": task} | ({} if depth is None else {"answer_depth": depth}),
        )


def answer(text: str, _sample: Sample, _prompt_is_raw: bool) -> str:
    """All of the text, as RULER takes it, but for a thought."""
    return thinking.answer(text).strip()


def score_of(sample: Mapping[str, Any]) -> Score:
    """RULER's score of a task."""
    return string_match_part if sample["task"].startswith("qa") else string_match_all


def compose(
    settings: RulerSettings, context_tokens: int, prompt_tokens: Any
) -> list[dict[str, Any]]:
    """Records of our own."""
    tasks = settings.tasks or synthetic.RULER_TASKS
    return synthetic.ruler(
        settings.seed, settings.n_samples, context_tokens, prompt_tokens, tasks=tasks
    )


TASK = Task(
    name="ruler",
    settings=RulerSettings,
    sample=sample,
    synthesize={},
    compose={"synthetic": compose},
    ordered=in_turn,
    answer=answer,
    score=string_match_all,
    score_of=score_of,
    score_names=("string_match",),
    groups=("task",),
    example=EXAMPLE,
)

if __name__ == "__main__":
    main(TASK, __doc__)
