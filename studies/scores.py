"""The study's tables of scores: what pruning changes, by data set, method and share kept."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from scipy.stats import false_discovery_control

from longctx.paired import ScoreDifference
from longctx.tables import markdown
from studies import comparisons, measurements
from studies.comparisons import Pair
from studies.measurements import SHARES, Point, grouped, percent, pivot

Block = tuple[str, str]  # name, Markdown


@dataclass(frozen=True)
class Scored:
    """A point of a table, what its score differs by, and the points that this is of."""

    point: Point
    score: ScoreDifference
    of: list[Point]


_OVERVIEW = (
    "quality: losses / gains seen over all lengths, of methods that are no controls, corrected for "
    "their number; - where shuffled answers score as much"
)


def blocks(points: Sequence[Point]) -> Iterator[Block]:
    """Scores by method and share, over all lengths and at each; how many losses are seen."""
    mine = [point for point in points if point.sweep.startswith("quality/")]
    found = list(comparisons.pairs(mine, lambda p: p.method == "full", lambda p: p.sweep))
    full = grouped((p for p in mine if p.method == "full"), lambda p: p.sweep)
    over_lengths = {}
    for sweep, here in grouped(found, lambda pair: pair.other.sweep).items():
        same = grouped(here, lambda pair: (pair.other.method, pair.other.kept)).values()
        if scored := _scored(same):
            over_lengths[sweep] = scored
            yield _table(sweep, "all lengths", scored)
    if over_lengths:
        can_lose = {sweep for sweep in over_lengths if _is_above_floor(full[sweep])}
        yield _OVERVIEW, _overview(over_lengths, can_lose)
    for length, at in grouped(found, lambda pair: pair.other.context_tokens).items():
        for sweep, here in grouped(at, lambda pair: pair.other.sweep).items():
            if scored := _scored([pair] for pair in here):
                yield _table(sweep, f"{length:,} tokens", scored)


def _scored(cells: Iterable[Sequence[Pair]]) -> list[Scored]:
    scores = ((cell, comparisons.score(cell)) for cell in cells)
    return [
        Scored(cell[0].other, score, [p for pair in cell for p in pair.points])
        for cell, score in scores
        if score is not None
    ]


def _is_above_floor(full: Sequence[Point]) -> bool:
    difference = comparisons.above_floor(full)
    return difference is not None and comparisons.is_seen(difference) > 0


def _overview(found: Mapping[str, Sequence[Scored]], can_lose: Collection[str]) -> str:
    """By data set and in all, of each share kept: losses and gains among the methods.

    Without controls, and without data on which nothing can be lost. All that are counted are one
    family of tests, corrected by Benjamini and Hochberg's procedure.
    """
    counted = [
        (sweep, scored.point.kept, scored.score)
        for sweep, mine in sorted(found.items())
        for scored in mine
        if sweep in can_lose and not comparisons.is_control(scored.point)
    ]
    ps = false_discovery_control([score.p for *_, score in counted]) if counted else []
    seen = [
        (sweep, share, comparisons.is_seen(score, p))
        for (sweep, share, score), p in zip(counted, ps, strict=True)
    ]
    shares = sorted({one.point.kept for mine in found.values() for one in mine}, reverse=True)
    rows = [["data", *map(percent, shares)]]
    for sweep in sorted(found):
        here = [entry for entry in seen if entry[0] == sweep]
        rows.append([sweep.removeprefix("quality/"), *(_counts(here, share) for share in shares)])
    rows.append(["all", *(_counts(seen, share) for share in shares)])
    return markdown(rows[0], rows[1:])


def _counts(seen: Sequence[tuple[str, float, int]], share: float) -> str:
    signs = [sign for _, kept, sign in seen if kept == share]
    return f"{signs.count(-1)} / {signs.count(1)} of {len(signs)}" if signs else "-"


def _table(sweep: str, lengths: str, here: Sequence[Scored]) -> Block:
    score = max((scored.score for scored in here), key=lambda score: score.n)
    title = f"{sweep}, {lengths}: {score.name} {score.reference:.3f}, n = {score.n}"
    heads = {"method": lambda point: f"`{point.method}`"}
    text = pivot(heads, here, _difference, SHARES, attrgetter("point"))
    return f"{title}; what the share kept changes, 95% in pairs", text


def _difference(scored: Scored) -> str:
    score = scored.score
    text = f"{score.other - score.reference:+.3f}"
    if score.interval is not None:
        text += f" [{score.interval[0]:+.3f}, {score.interval[1]:+.3f}]"
    text = f"**{text}**" if comparisons.is_seen(score) else text
    return measurements.marked(text, scored.of)
