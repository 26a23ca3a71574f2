"""What the page shows of sweeps: groups against their full cache, tasks, and places of answers."""

from collections.abc import Sequence
from typing import Any

from longctx import choice_groups, choice_tables, paired
from longctx.choices import Choice, Group
from longctx.load_results import FullResults

DEPTHS = 5  # parts of a text in which an answer may stand
_DEPTH = "answer_depth"  # of a sample: its place in the text, from 0 to 1
_TASK = "task"  # of a sample: its kind, in data of several tasks


def groups(runs: Sequence[FullResults]) -> list[dict[str, Any]]:
    """The groups, the most telling first, as the page's script reads them."""
    found = choice_groups.find(runs)
    names = choice_tables.titles(found)
    return [_group(runs, group, name) for group, name in zip(found, names, strict=True)]


def _group(runs: Sequence[FullResults], group: Group, name: str) -> dict[str, Any]:
    best = group.best()
    return {
        "name": name,
        "lengths": group.lengths,
        "all_lengths": group.is_of_all_lengths,
        "score": group.score,
        "full": group.full,
        "quality": group.quality,
        "n": group.n,
        "told": group.is_told,
        "answer": choice_tables.answer(group),
        "best": [group.choices.index(choice) for choice in best],
        "controls": [choice.name for choice in group.controls_without_loss()],
        "methods": group.methods,
        "kept": group.kept,
        "choices": [_choice(choice) for choice in group.choices],
        "tasks": _tasks(runs, group) if group.is_of_all_lengths else {},
        "depths": _depths(runs, group) if group.is_of_all_lengths else {},
    }


def _choice(choice: Choice) -> dict[str, Any]:
    difference = choice.difference
    about: dict[str, Any] = {
        "run": choice.run,
        "method": choice.method,
        "kept": choice.kept,
        "control": choice.is_control,
        "oom": choice.is_out_of_memory,
        "saved": choice_tables.saving(choice),
        "share": choice.share,
        "lost_at": choice.lost_at,
    }
    if difference is not None:
        about |= {
            "n": difference.n,
            "value": difference.other,
            "full": difference.reference,
            "interval": difference.interval,
            "seen": difference.seen,
            "excluded": difference.excluded_loss,
        }
    return about


def _tasks(runs: Sequence[FullResults], group: Group) -> dict[str, dict[int, float]]:
    """Of data of several tasks each task's mean score by the run's place, at its longest length."""
    found: dict[str, dict[int, float]] = {}
    for number in group.runs:
        scores: dict[str, list[float]] = {}
        for sample in paired.samples_at(runs[number], group.lengths[-1]).values():
            task, score = sample.get(_TASK), sample.get(group.score)
            if isinstance(task, str) and score is not None:
                scores.setdefault(task, []).append(score)
        for task, mine in scores.items():
            found.setdefault(task, {})[number] = sum(mine) / len(mine)
    return found


def _depths(runs: Sequence[FullResults], group: Group) -> dict[int, dict[int, list[Any]]]:
    """Run's place -> context length -> of each part of the text [mean score, samples].

    Empty where samples do not say where in the text their answer stands.
    """
    found = {}
    for number in group.runs:
        by_length = {
            length: parts
            for length in group.lengths
            if (parts := depth_parts(runs[number], length, group.score))
        }
        if by_length:
            found[number] = by_length
    return found


def depth_parts(run: FullResults, length: int, score: str) -> list[Any]:
    """Of each part of the text, from its beginning, [mean score, samples]; [None, 0] of none."""
    scores: list[list[float]] = [[] for _ in range(DEPTHS)]
    for sample in paired.samples_at(run, length).values():
        depth, value = sample.get(_DEPTH), sample.get(score)
        if isinstance(depth, int | float) and 0 <= depth <= 1 and value is not None:
            scores[min(int(depth * DEPTHS), DEPTHS - 1)].append(value)
    if not any(scores):
        return []
    return [[sum(mine) / len(mine) if mine else None, len(mine)] for mine in scores]
