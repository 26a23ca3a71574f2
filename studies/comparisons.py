"""Points of the sweeps compared with the point that they differ from in one thing only."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from longctx import figures, paired, rescore
from longctx.paired import CostRatio, ScoreDifference
from studies.measurements import Point, grouped

# A sample's id, the reference's score and the other's, and the document that it is about.
Answer = tuple[str, tuple[float, float], str | None]

_SEED = 0


def main_score(meta: dict[str, Any]) -> str:
    """The score of a run that stands in tables and figures: its first, but HotpotQA's F1.

    Exact match tells few of a small model's answers apart.
    """
    return "f1" if meta["task"] == "hotpotqa" else str(meta["score_names"][0])


@dataclass(frozen=True)
class Pair:
    """A point and its reference: the same length, the same samples."""

    reference: Point
    other: Point

    @property
    def points(self) -> tuple[Point, Point]:
        """Both, the reference first."""
        return self.reference, self.other

    def costs(self, place: str = figures.COMPARE) -> dict[str, CostRatio]:
        """Ratios of the figures shown in `place`, by their keys, as far as both have them."""
        length = self.other.context_tokens
        ratios = paired.cost_ratios(self.reference.run, self.other.run, length, _SEED, place)
        return {ratio.figure.key: ratio for ratio in ratios}


def score(found: Sequence[Pair]) -> ScoreDifference | None:
    """What the task's score differs by at one length or over several; None where there is none.

    found: one or more, of the same two settings.
    Each sample counts once, by its mean over the lengths at which both runs answered it: its
    prompts are cut out of one text, so they are not independent.
    """
    name = main_score(found[0].other.meta)
    answers: list[Answer] = []
    for pair in found:
        first, second = (paired.samples_at(p.run, p.context_tokens) for p in pair.points)
        for key, both in paired.score_pairs(first, second, name).items():
            answers.append((key, both, paired.document_of(first[key], second[key])))
    return _difference(name, answers)


def above_floor(full: Sequence[Point]) -> ScoreDifference | None:
    """What the full cache's answers score more than the same answers shuffled between questions.

    full: one or more points, of one setting. As in `score`, each sample counts once. None of a data
    set whose script is not here.
    """
    task = rescore.task_named(full[0].meta["task"])
    if task is None:
        return None
    name = main_score(full[0].meta)
    answers: list[Answer] = []
    for point in full:
        samples = (sample for row in point.rows for sample in row["samples"])
        mine = [sample for sample in samples if sample.get(name) is not None]
        half = len(mine) // 2
        shuffled = [sample["prediction"] for sample in mine[half:] + mine[:half]]
        floors = task.score(shuffled, [sample["references"] for sample in mine])
        for sample, floor in zip(mine, floors, strict=True):
            both = floor[name] or 0.0, sample[name]
            answers.append((sample["sample_id"], both, paired.document_of(sample)))
    return _difference(name, answers)


def _difference(name: str, answers: Sequence[Answer]) -> ScoreDifference | None:
    samples = grouped(answers, lambda answer: answer[0]).values()
    scores = [zip(*(both for _, both, _ in mine), strict=True) for mine in samples]
    means = [(fmean(reference), fmean(other)) for reference, other in scores]
    documents = [document for (_, _, document), *_ in samples]
    return paired.difference(name, means, _SEED, documents) if means else None


def pairs(
    points: Sequence[Point], is_reference: Callable[[Point], bool], same: Callable[[Point], Any]
) -> Iterator[Pair]:
    """Each point that is no reference with the reference of its length that shares `same`."""
    references = {(p.context_tokens, same(p)): p for p in points if is_reference(p)}
    for point in points:
        reference = references.get((point.context_tokens, same(point)))
        if reference is not None and not is_reference(point):
            yield Pair(reference, point)


def speed_up(ratio: CostRatio) -> tuple[float, list[float] | None]:
    """How many times as fast, with the interval within one run, of a ratio of times."""
    interval = ratio.interval and [1 / end for end in reversed(ratio.interval)]
    return ratio.reference / ratio.other, interval


def is_faster(pair: Pair, figure: str) -> bool:
    """Whether a figure of time is shorter in every request than in any of the reference's."""
    first, second = (point.values(figure) for point in pair.points)
    return bool(first and second) and max(second) < min(first)


def is_control(point: Point) -> bool:
    """Whether the method is there to be beaten: chance, recency or the highest norms."""
    return point.method in ("random", "window") or point.setting("L2_KEEP") == "high"


def is_seen(difference: ScoreDifference, p: float | None = None) -> int:
    """-1 for a loss that interval and test both show, 1 for such a gain, else 0.

    p: the test's, where it is corrected for many tests.
    """
    low, high = difference.interval or (0, 0)
    # The test takes long: not asked for where the interval alone says no.
    if low <= 0 <= high or (difference.p if p is None else p) >= paired.SIGNIFICANCE:
        return 0
    return 1 if low > 0 else -1


def repeats(points: Sequence[Point], again: Sequence[Point]) -> Iterator[Pair]:
    """Points of two folders: the same settings, samples, device and length."""
    first = {_identity(point): point for point in points}
    for point in again:
        if _identity(point) in first:
            yield Pair(first[_identity(point)], point)


def _identity(point: Point) -> Any:
    about = point.meta["task"], point.meta["data_fingerprint"], point.meta["device"]["name"]
    return point.sweep, point.context_tokens, point.settings, about


def agree(pair: Pair, figure: str) -> bool:
    """Whether the ranges of a figure, measured in both, touch over their requests."""
    first, second = (point.values(figure) for point in pair.points)
    return max(min(first), min(second)) <= min(max(first), max(second))
