"""The study's tables of scores: what pruning changes, by data set, method and share kept."""

from collections.abc import Iterable, Iterator, Sequence

from longctx.paired import ScoreDifference
from longctx.tables import markdown
from studies import comparisons
from studies.measurements import Point, grouped

Block = tuple[str, str]  # name, Markdown


def blocks(points: Sequence[Point]) -> Iterator[Block]:
    """Scores by method and share, over all lengths and at each; how many losses are seen."""
    mine = [point for point in points if point.sweep.startswith("quality/")]
    found = list(
        comparisons.pairs(mine, lambda point: point.method == "full", lambda point: point.sweep)
    )
    seen: list[tuple[str, float, int]] = []
    for sweep, here in grouped(found, lambda pair: pair.other.sweep).items():
        same = grouped(here, lambda pair: (pair.other.method, pair.other.kept)).values()
        known = [
            (cell[0].other, score)
            for cell in same
            if (score := comparisons.over_lengths(cell)) is not None
        ]
        if known:
            yield _table(sweep, "all lengths", known)
        name = sweep.removeprefix("quality/")
        seen += [(name, point.kept, comparisons.is_seen(score)) for point, score in known]
    shares = sorted({share for _, share, _ in seen}, reverse=True)
    rows = [["data", *(f"{share:.0%}" for share in shares)]]
    for name in (*sorted({name for name, _, _ in seen}), "all"):
        here_seen = [found for found in seen if name in (found[0], "all")]
        rows.append(
            [name, *(_counts(s for _, kept, s in here_seen if kept == share) for share in shares)]
        )
    yield (
        "quality: losses / gains seen over all lengths, of the methods",
        markdown(rows[0], rows[1:]),
    )
    for (sweep, length), here in grouped(
        found, lambda p: (p.other.sweep, p.other.context_tokens)
    ).items():
        if at := [(p.other, score) for p in here if (score := p.score()) is not None]:
            yield _table(sweep, f"{length:,} tokens", at)


def _counts(seen: Iterable[int]) -> str:
    found = list(seen)
    return f"{found.count(-1)} / {found.count(1)} of {len(found)}"


def _table(sweep: str, lengths: str, here: Sequence[tuple[Point, ScoreDifference]]) -> Block:
    score = here[0][1]
    title = f"{sweep}, {lengths}: {score.name} {score.reference:.3f}, n = {score.n}"
    return f"{title}; what the share kept changes, 95% in pairs", _differences(here)


def _differences(here: Sequence[tuple[Point, ScoreDifference]]) -> str:
    shares = sorted({point.kept for point, _ in here}, reverse=True)
    rows: list[list[str]] = [["method", *(f"{share:.0%}" for share in shares)]]
    for method, mine in grouped(here, lambda d: d[0].method).items():
        cells = {point.kept: _difference(score) for point, score in mine}
        rows.append([f"`{method}`", *(cells.get(share, "") for share in shares)])
    return markdown(rows[0], rows[1:])


def _difference(score: ScoreDifference) -> str:
    text = f"{score.other - score.reference:+.3f}"
    if score.interval is not None:
        text += f" [{score.interval[0]:+.3f}, {score.interval[1]:+.3f}]"
    return f"**{text}**" if comparisons.is_seen(score) else text
