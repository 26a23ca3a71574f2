"""RULER's thirteen tasks, https://arxiv.org/abs/2404.06654, in words and texts of our own.

The kinds of haystack, keys, values and answers are RULER's, and so is how long an answer may be.
Its worked examples before the lists and chains are left out.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from longctx.synthetic._lists import common_words, frequent_words, variables
from longctx.synthetic._needles import NeedleTask
from longctx.synthetic._puzzle import Puzzle, fitted
from longctx.synthetic._questions import one_fact, two_facts

# (random numbers, first depth, number, tokens of the prompt) -> the number-th puzzle of a task
_Make = Callable[[random.Random, float, int, int], Puzzle]


def _needles(**kind: Any) -> _Make:
    task = NeedleTask(**kind)
    return lambda rng, offset, number, _tokens: task.puzzle(rng, offset, number)


_TASKS: dict[str, tuple[_Make, int]] = {
    "niah_single_1": (_needles(haystack="noise"), 128),
    "niah_single_2": (_needles(haystack="prose"), 128),
    "niah_single_3": (_needles(haystack="prose", has_codes=True), 128),
    "niah_multikey_1": (_needles(haystack="prose", keys=4), 128),
    "niah_multikey_2": (_needles(haystack="needles"), 128),
    "niah_multikey_3": (_needles(haystack="needles", has_code_keys=True, has_codes=True), 128),
    "niah_multivalue": (_needles(haystack="prose", values=4), 128),
    "niah_multiquery": (_needles(haystack="prose", keys=4, asked=4), 128),
    "vt": (lambda rng, _offset, _number, tokens: variables(rng, tokens), 30),
    "cwe": (lambda rng, _offset, _number, tokens: common_words(rng, tokens), 120),
    "fwe": (lambda rng, _offset, _number, tokens: frequent_words(rng, tokens), 50),
    "qa_1": (lambda rng, _offset, number, _tokens: one_fact(rng, number), 32),
    "qa_2": (lambda rng, _offset, number, _tokens: two_facts(rng, number), 32),
}
RULER_TASKS = tuple(_TASKS)


def ruler(
    seed: int,
    count: int,
    context_tokens: int,
    prompt_tokens: Callable[[dict[str, Any]], int],
    *,
    tasks: Sequence[str] = RULER_TASKS,
) -> list[dict[str, Any]]:
    """`count` records in the schema of `simonjegou/ruler`, of each of `tasks` in turn.

    A task's records depend on seed and length alone; its questions and answers hardly on the
    length.
    prompt_tokens: tokens of the whole prompt of a record; it comes to `context_tokens`, or a few
        fewer.
    Beside the schema's columns a record has `id`, `evidence`, and, where a single needle is asked
    for, `answer_depth`, its place in the text from 0 to 1.
    Raises ValueError where a text is too short for a task.
    """
    return [
        _record(seed, tasks[place % len(tasks)], place // len(tasks), context_tokens, prompt_tokens)
        for place in range(count)
    ]


def _record(
    seed: int,
    task: str,
    number: int,
    context_tokens: int,
    prompt_tokens: Callable[[dict[str, Any]], int],
) -> dict[str, Any]:
    make, answer_tokens = _TASKS[task]
    offset = random.Random(f"{seed}/{task}").random()
    puzzle = make(random.Random(f"{seed}/{task}/{number}"), offset, number, context_tokens)

    def record(units: int, padding: int) -> dict[str, Any]:
        return {
            "id": f"{task}-{seed}-{number:04d}",
            "context": puzzle.context(units, padding),
            "question": puzzle.question,
            "answer_prefix": puzzle.answer_prefix,
            "answer": puzzle.answers,
            "task": task,
            "max_new_tokens": answer_tokens,
            "evidence": puzzle.evidence,
        }

    size = fitted(lambda *size: prompt_tokens(record(*size)), context_tokens)
    if size is None:
        needed = prompt_tokens(record(0, 0))
        raise ValueError(f"a prompt of {task} takes at least {needed} tokens")
    found = record(*size)
    if task.startswith("niah") and len(puzzle.evidence) == 1:
        text = found["context"]
        found["answer_depth"] = round(text.index(puzzle.evidence[0]) / len(text), 4)
    return found
