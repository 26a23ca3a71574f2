"""The study's tables of scores: what pruning changes, by data set, method and share kept."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from longctx.paired import ScoreDifference
from longctx.tables import markdown
from studies import comparisons, measurements
from studies.comparisons import Pair
from studies.measurements import Point, grouped

Block = tuple[str, str]  # name, Markdown


@dataclass(frozen=True)
class Scored:
    """A point of a table, what its score differs by, and the points that this is of."""

    point: Point
    score: ScoreDifference
    of: list[Point]


def blocks(points: Sequence[Point]) -> Iterator[Block]:
    """Scores by method and share, over all lengths and at each; how many losses are seen."""
    mine = [point for point in points if point.sweep.startswith("quality/")]
    found = list(comparisons.pairs(mine, lambda p: p.method == "full", lambda p: p.sweep))
    over_lengths = {}
    for sweep, here in grouped(found, lambda pair: pair.other.sweep).items():
        same = grouped(here, lambda pair: (pair.other.method, pair.other.kept)).values()
        if scored := _scored(same):
            over_lengths[sweep.removeprefix("quality/")] = scored
            yield _table(sweep, "all lengths", scored)
    if over_lengths:
        title = "quality: losses / gains seen over all lengths, of the methods"
        yield title, _overview(over_lengths)
    for length, at in grouped(found, lambda pair: pair.other.context_tokens).items():
        for sweep, here in grouped(at, lambda pair: pair.other.sweep).items():
            if scored := _scored([pair] for pair in here):
                yield _table(sweep, f"{length:,} tokens", scored)


def _scored(cells: Iterable[Sequence[Pair]]) -> list[Scored]:
    scores = ((cell, comparisons.score(cell)) for cell in cells)
    return [
        Scored(cell[0].other, score, [p for pair in cell for p in (pair.reference, pair.other)])
        for cell, score in scores
        if score is not None
    ]


def _overview(found: Mapping[str, Sequence[Scored]]) -> str:
    """By data set and in all, of each share kept: losses and gains among the methods."""
    everything = [scored for mine in found.values() for scored in mine]
    shares = sorted({scored.point.kept for scored in everything}, reverse=True)
    rows = [["data", *(f"{share:.0%}" for share in shares)]]
    for name, mine in (*sorted(found.items()), ("all", everything)):
        rows.append([name, *(_counts(mine, share) for share in shares)])
    return markdown(rows[0], rows[1:])


def _counts(found: Sequence[Scored], share: float) -> str:
    seen = [comparisons.is_seen(mine.score) for mine in found if mine.point.kept == share]
    return f"{seen.count(-1)} / {seen.count(1)} of {len(seen)}"


def _table(sweep: str, lengths: str, here: Sequence[Scored]) -> Block:
    score = max((scored.score for scored in here), key=lambda score: score.n)
    title = f"{sweep}, {lengths}: {score.name} {score.reference:.3f}, n = {score.n}"
    return f"{title}; what the share kept changes, 95% in pairs", _differences(here)


def _differences(here: Sequence[Scored]) -> str:
    shares = sorted({scored.point.kept for scored in here}, reverse=True)
    rows: list[list[str]] = [["method", *(f"{share:.0%}" for share in shares)]]
    for method, mine in grouped(here, lambda scored: scored.point.method).items():
        cells = {scored.point.kept: _difference(scored) for scored in mine}
        rows.append([f"`{method}`", *(cells.get(share, "") for share in shares)])
    return markdown(rows[0], rows[1:])


def _difference(scored: Scored) -> str:
    score = scored.score
    text = f"{score.other - score.reference:+.3f}"
    if score.interval is not None:
        text += f" [{score.interval[0]:+.3f}, {score.interval[1]:+.3f}]"
    text = f"**{text}**" if comparisons.is_seen(score) else text
    return measurements.marked(text, scored.of)
