"""The tables of the study, as Markdown, and what its verdicts rest on, from the sweeps' logs.

    python studies/tables.py logs/studies
    python studies/tables.py logs/studies --repeat logs/studies-again

Each table stands between comments that name it. Where a document holds it with them, a test makes
it again from the logs and compares.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from longctx import figures
from longctx.tables import figure, markdown
from studies import comparisons, measurements, scores
from studies.comparisons import Pair
from studies.measurements import Point, grouped, of_sweep, percent
from studies.scores import Block

Heads = dict[str, Callable[[Point], Any]]


def _kept(point: Point) -> str:
    return percent(point.kept)


def _costs() -> str:
    """The study's costs in words, as the titles of their tables have them."""
    names = (f"{f.name} {f.unit.replace('/', ' per ')}" for f in figures.shown(figures.STUDY))
    return f"{' / '.join(names)}, p50 and most of the requests"


_KEPT: Heads = {"kept": _kept}
_LOOP: Heads = {"batch": lambda p: p.batch, "decode": lambda p: p.decode}


def by_length(
    heads: Heads, entries: Sequence[Any], point_of: Callable[[Any], Point], cell: Callable
) -> str:
    """A line for each combination of heads, a column for each context length."""
    lengths = sorted({point_of(entry).context_tokens for entry in entries})
    rows: list[list[str]] = [[*heads, *(f"{length:,}" for length in lengths)]]

    def names(entry: Any) -> tuple[Any, ...]:
        return tuple(str(head(point_of(entry))) for head in heads.values())

    for key, mine in grouped(entries, names).items():
        cells = {point_of(entry).context_tokens: cell(entry) for entry in mine}
        rows.append([*key, *(cells.get(length, "") for length in lengths)])
    return markdown(rows[0], rows[1:])


def costs(point: Point) -> str:
    """The study's costs: time to the first token, time a token and memory."""
    return _figures(point, figures.STUDY)


def choosing_costs(point: Point) -> str:
    """Time spent on choosing what stays, and what it is part of or buys.

    Not memory: it goes by the share kept.
    """
    return _figures(point, figures.CHOOSING)


def _figures(point: Point, place: str) -> str:
    if point.out_of_memory:
        return "out of memory"
    shown = figures.shown(place)
    text = " / ".join(figure(f.of_summary(point.summary), f.shown[place]) for f in shown)
    return measurements.marked(text, [point])


def speed_ups(pair: Pair) -> str:
    """Of decoding, and of a whole request; with an interval where the requests are enough."""
    ratios = pair.costs()
    texts = []
    for name in ("ms_per_token_decode", "latency_ms_total"):
        if name not in ratios:
            texts.append("-")
            continue
        value, limits = comparisons.speed_up(ratios[name])
        texts.append(interval(value, *limits) if limits else f"{value:.2f}")
    return measurements.marked(" / ".join(texts), [pair.reference, pair.other])


def cost_ratios(pair: Pair) -> str:
    """Of the study's costs."""
    ratios = pair.costs(figures.STUDY)
    found = (ratios.get(cost.key) for cost in figures.shown(figures.STUDY))
    text = " / ".join(f"{r.other / r.reference:.2f}" if r else "-" for r in found)
    return measurements.marked(text, [pair.reference, pair.other])


def _cost_names() -> str:
    return " / ".join(cost.name for cost in figures.shown(figures.STUDY))


def interval(value: float, low: float, high: float) -> str:
    """A number and its interval."""
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def attention(points: Sequence[Point]) -> Iterator[Block]:
    """Costs by backend; how far from SDPA's."""
    mine = [point for point in points if point.sweep.startswith("attention/")]
    heads: Heads = {
        "prefill": lambda p: p.setting("PREFILL"),
        "batch": lambda p: p.batch,
        "attention": lambda p: f"`{p.setting('ATTN_IMPL')}`",
    }
    yield f"attention: {_costs()}", by_length(heads, mine, _itself, costs)
    against_sdpa = comparisons.pairs(
        mine, lambda p: p.setting("ATTN_IMPL") == "sdpa", lambda p: (p.sweep, p.batch)
    )
    title = f"attention: times sdpa's {_cost_names()}"
    yield title, by_length(heads, list(against_sdpa), _other, cost_ratios)


def pays(points: Sequence[Point]) -> Iterator[Block]:
    """Costs by share kept, length, batch and decode loop; from where on pruning pays."""
    mine = sorted(of_sweep(points, "kv/pays"), key=_loop)
    yield f"kv: {_costs()}", by_length(_LOOP | _KEPT, mine, _itself, costs)
    against_full = list(comparisons.pairs(mine, _is_full, _loop))
    title = "kv: times as fast as the full cache, decoding / whole request, in one run each"
    yield title, by_length(_LOOP | _KEPT, against_full, _other, speed_ups)
    rows: list[list[str]] = [[*_LOOP, *_KEPT, "faster decoding from", "faster request from"]]
    for names, found in grouped(
        against_full, lambda pair: (*map(str, _loop(pair.other)), _kept(pair.other))
    ).items():
        times = ("ms_per_token_decode", "latency_ms_total")
        rows.append([*names, *(pays_from(found, time) for time in times)])
    title = (
        "kv: the shortest length from which on every request of one run is faster than the full "
        "cache's"
    )
    yield title, markdown(rows[0], rows[1:])
    title = "kv: new tokens after which faster decoding has made up for choosing what stays"
    yield title, by_length(_LOOP | _KEPT, against_full, _other, pays_back)


def pays_from(found: Sequence[Pair], figure: str) -> str:
    """The shortest length from which on the slowest request beats the full cache's fastest."""
    best = "-"
    for pair in sorted(found, key=lambda pair: -pair.other.context_tokens):
        if not comparisons.is_faster(pair, figure):
            break
        best = f"{pair.other.context_tokens:,}"
    return best


def pays_back(pair: Pair) -> str:
    """Tokens of a batch's rows until the time spent on choosing is saved; "-" for never."""
    if not comparisons.is_faster(pair, "ms_per_token_decode"):
        return "-"
    full, pruned = (
        median(point.values("ms_per_token_decode")) for point in (pair.reference, pair.other)
    )
    return f"{math.ceil(median(pair.other.values('compress_ms')) / (full - pruned)):,}"


def methods(points: Sequence[Point]) -> Iterator[Block]:
    """What choosing the tokens costs, by method."""
    heads: Heads = {"scope": lambda p: p.setting("KV_SCOPE"), "method": lambda p: f"`{p.method}`"}
    ordered = sorted(
        of_sweep(points, "kv/methods"),
        key=lambda p: (p.setting("KV_SCOPE"), not _is_full(p), p.method),
    )
    for length, mine in grouped(ordered, _length).items():
        kept = sorted({p.kept for p in mine}, reverse=True)
        rows: list[list[str]] = [[*heads, *map(percent, kept)]]
        for names, found in grouped(mine, lambda p: tuple(h(p) for h in heads.values())).items():
            cells = {p.kept: choosing_costs(p) for p in found}
            rows.append([*names, *(cells.get(share, "") for share in kept)])
        title = f"kv methods, {length:,} tokens: compress ms / TTFT ms / decode ms per token, p50"
        yield title, markdown(rows[0], rows[1:])


def quantization(points: Sequence[Point]) -> Iterator[Block]:
    """Costs by format of the weights and of the cache; how far from those of plain weights."""
    heads = _LOOP | {"weights": lambda p: p.weights, "cache": lambda p: p.setting("KV_QUANT")}
    mine = sorted(of_sweep(points, "quantization"), key=lambda p: (_loop(p), not _is_plain(p)))
    yield f"quantization: {_costs()}", by_length(heads, mine, _itself, costs)
    against_plain = comparisons.pairs(mine, _is_plain, _loop)
    title = f"quantization: times the {_cost_names()} of plain weights and cache"
    yield title, by_length(heads, list(against_plain), _other, cost_ratios)


def combined(points: Sequence[Point]) -> Iterator[Block]:
    """Costs by weights and share kept, up to long contexts."""
    heads = _LOOP | {"weights": lambda p: p.weights} | _KEPT
    yield f"combined: {_costs()}", by_length(heads, of_sweep(points, "combined"), _itself, costs)


def repeats(points: Sequence[Point], again: Sequence[Point]) -> Iterator[Block]:
    """Cells that were run twice: the second run's times over the first's, and what is the same.

    These ratios are what two runs differ by anyhow.
    """
    found = list(comparisons.repeats(points, again))
    lengths = sorted({_length(pair.other) for pair in found})
    headings = ("sweep", "attention", "batch", "decode")
    rows: list[list[str]] = [
        [*headings, *(f"{length:,}" for length in lengths), "ranges touch", "same answers"]
    ]
    for key, mine in grouped(found, lambda pair: _repeated_heads(pair.other)).items():
        at = grouped(mine, lambda pair: _length(pair.other))
        times = [" / ".join(_ratios(at.get(n, []), name) for name in _TIMES) for n in lengths]
        touch = " / ".join(_touching(mine, name) for name in _TIMES)
        same = [same for pair in mine for same in _same_answers(pair)]
        rows.append([*key, *times, touch, f"{sum(same)} of {len(same)}"])
    yield (
        "repeats: TTFT / decode time a token, times the first run's; requests' ranges that touch",
        markdown(rows[0], rows[1:]),
    )


_TIMES = ("ttft_ms", "ms_per_token_decode")


def _repeated_heads(point: Point) -> tuple[str, ...]:
    return point.sweep, f"`{point.setting('ATTN_IMPL')}`", str(point.batch), point.decode


def _ratios(found: Sequence[Pair], name: str) -> str:
    """The least and the most of the ratios of medians; "-" where nothing was measured."""
    ratios = [
        median(second) / median(first)
        for pair in found
        if (first := pair.reference.values(name)) and (second := pair.other.values(name))
    ]
    if not ratios:
        return "-"
    ends = sorted({f"{min(ratios):.2f}", f"{max(ratios):.2f}"})
    return " to ".join(ends)


def _touching(found: Sequence[Pair], name: str) -> str:
    """Of the cells with several requests; one has no range."""
    ranges = [p for p in found if min(len(q.values(name)) for q in (p.reference, p.other)) > 1]
    agreeing = sum(comparisons.agree(pair, name) for pair in ranges)
    return f"{agreeing} of {len(ranges)}" if ranges else "-"


def _same_answers(pair: Pair) -> list[bool]:
    outputs = [
        [sample["output"] for row in point.rows for sample in row["samples"]]
        for point in (pair.reference, pair.other)
    ]
    return [first == second for first, second in zip(*outputs, strict=False)]


def _itself(point: Point) -> Point:
    return point


def _other(pair: Pair) -> Point:
    return pair.other


def _length(point: Point) -> int:
    return point.context_tokens


def _is_full(point: Point) -> bool:
    return point.method == "full"


def _is_plain(point: Point) -> bool:
    return point.setting("QUANT_MODE") == "none" and point.setting("KV_QUANT") == "none"


def _loop(point: Point) -> tuple[int, str]:
    return point.batch, point.decode


def blocks(folder: Path, again: Path | None = None) -> dict[str, str]:
    """All tables of the sweeps in a folder, by name; with the same run again, how they agree."""
    points = measurements.read(folder)
    makers = (attention, pays, methods, quantization, combined, scores.blocks)
    made = [block for make in makers for block in make(points)]
    if again is not None:
        made += repeats(points, measurements.read(again))
    return {
        name: measurements.with_notes(name, text, points)
        for name, text in made
        if text.count("\n") > 1  # more than its heading
    }


def commented(name: str, text: str) -> str:
    """A table between the comments that name it."""
    return f"<!-- study: {name} -->\n{text}\n<!-- end of study -->"


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="LOGDIR of the sweeps")
    parser.add_argument("--repeat", type=Path, help="LOGDIR of the same sweeps, run again")
    arguments = parser.parse_args()
    for name, text in blocks(arguments.folder, arguments.repeat).items():
        print(f"{name}\n\n{commented(name, text)}\n")


if __name__ == "__main__":
    main()
