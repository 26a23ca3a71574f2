"""The tables of the study, as Markdown, and what its verdicts rest on, from the sweeps' logs.

    python studies/tables.py logs/studies
    python studies/tables.py logs/studies --repeat logs/studies-again

Each table stands between comments that name it. Where a document holds it with them, a test makes
it again from the logs and compares.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any

from longctx import cli, figures
from longctx.tables import markdown, number_text
from studies import comparisons, measurements, scores
from studies.comparisons import Pair
from studies.measurements import SHARES, Point, grouped, of_sweep, percent, pivot
from studies.scores import Block

Heads = dict[str, Callable[[Point], Any]]
_other = attrgetter("other")  # the point of a pair that is shown

_KEPT: Heads = {"kept": lambda p: percent(p.kept)}
_LOOP: Heads = {"batch": lambda p: p.batch, "decode": lambda p: p.decode}


def _costs() -> str:
    """The study's costs in words, as the titles of their tables have them."""
    names = (f"{f.name} {f.unit.replace('/', ' per ')}" for f in figures.shown(figures.STUDY))
    return f"{' / '.join(names)}, p50 and most of the requests"


def _cost_names() -> str:
    return " / ".join(cost.name for cost in figures.shown(figures.STUDY))


def costs(point: Point, place: str = figures.STUDY) -> str:
    """The study's costs: time to the first token, time a token and memory; or those of `place`."""
    if point.out_of_memory:
        return "out of memory"
    shown = figures.shown(place)
    text = " / ".join(number_text(f.of_summary(point.summary), f.shown[place]) for f in shown)
    return measurements.marked(text, [point])


# Time spent on choosing what stays, and what that is part of or buys; memory goes by the share.
choosing_costs = partial(costs, place=figures.CHOOSING)


def speed_ups(pair: Pair) -> str:
    """Of decoding, and of a whole request; with an interval where the requests are enough."""
    ratios = pair.costs()
    texts = []
    for name in ("ms_per_token_decode", "latency_ms_total"):
        if name not in ratios:
            texts.append("-")
            continue
        value, limits = comparisons.speed_up(ratios[name])
        texts.append(f"{value:.2f}" + (f" [{limits[0]:.2f}, {limits[1]:.2f}]" if limits else ""))
    return measurements.marked(" / ".join(texts), pair.points)


def cost_ratios(pair: Pair) -> str:
    """Of the study's costs."""
    ratios = pair.costs(figures.STUDY)
    found = (ratios.get(cost.key) for cost in figures.shown(figures.STUDY))
    text = " / ".join(f"{r.other / r.reference:.2f}" if r else "-" for r in found)
    return measurements.marked(text, pair.points)


def attention(points: Sequence[Point]) -> Iterator[Block]:
    """Costs by backend; how far from SDPA's."""
    mine = [point for point in points if point.sweep.startswith("attention/")]
    heads: Heads = {
        "prefill": lambda p: p.setting("PREFILL"),
        "batch": lambda p: p.batch,
        "attention": _attention,
    }
    yield f"attention: {_costs()}", pivot(heads, mine, costs)
    against_sdpa = comparisons.pairs(
        mine, lambda p: p.setting("ATTN_IMPL") == "sdpa", lambda p: (p.sweep, p.batch)
    )
    title = f"attention: times sdpa's {_cost_names()}"
    yield title, pivot(heads, list(against_sdpa), cost_ratios, point_of=_other)


def pays(points: Sequence[Point]) -> Iterator[Block]:
    """Costs by share kept, length, batch and decode loop; when pruning has paid for itself."""
    mine = sorted(of_sweep(points, "kv/pays"), key=_loop)
    yield f"kv: {_costs()}", pivot(_LOOP | _KEPT, mine, costs)
    against_full = list(comparisons.pairs(mine, _is_full, _loop))
    title = "kv: times as fast as the full cache, decoding / whole request, in one run each"
    yield title, pivot(_LOOP | _KEPT, against_full, speed_ups, point_of=_other)
    title = "kv: new tokens after which faster decoding has made up for choosing what stays"
    yield title, pivot(_LOOP | _KEPT, against_full, pays_back, point_of=_other)


def pays_back(pair: Pair) -> str:
    """Tokens of a batch's rows until the time spent on choosing is saved; "-" for never."""
    if not comparisons.is_faster(pair, "ms_per_token_decode"):
        return "-"
    full, pruned = (median(point.values("ms_per_token_decode")) for point in pair.points)
    return f"{math.ceil(median(pair.other.values('compress_ms')) / (full - pruned)):,}"


def methods(points: Sequence[Point]) -> Iterator[Block]:
    """What choosing the tokens costs, by method."""
    heads: Heads = {"scope": lambda p: p.setting("KV_SCOPE"), "method": lambda p: f"`{p.method}`"}
    ordered = sorted(
        of_sweep(points, "kv/methods"),
        key=lambda p: (p.setting("KV_SCOPE"), not _is_full(p), p.method),
    )
    for length, mine in grouped(ordered, lambda p: p.context_tokens).items():
        title = f"kv methods, {length:,} tokens: compress ms / TTFT ms / decode ms per token, p50"
        yield title, pivot(heads, mine, choosing_costs, SHARES)


def quantization(points: Sequence[Point]) -> Iterator[Block]:
    """Costs by format of the weights and of the cache; how far from those of plain weights."""
    heads = _LOOP | {"weights": lambda p: p.weights, "cache": lambda p: p.setting("KV_QUANT")}
    mine = sorted(of_sweep(points, "quantization"), key=lambda p: (_loop(p), not _is_plain(p)))
    yield f"quantization: {_costs()}", pivot(heads, mine, costs)
    against_plain = comparisons.pairs(mine, _is_plain, _loop)
    title = f"quantization: times the {_cost_names()} of plain weights and cache"
    yield title, pivot(heads, list(against_plain), cost_ratios, point_of=_other)


def combined(points: Sequence[Point]) -> Iterator[Block]:
    """Costs by weights and share kept, up to long contexts."""
    heads = _LOOP | {"weights": lambda p: p.weights} | _KEPT
    yield f"combined: {_costs()}", pivot(heads, of_sweep(points, "combined"), costs)


def repeats(points: Sequence[Point], again: Sequence[Point]) -> Iterator[Block]:
    """Cells that were run twice: the second run's times over the first's, and what is the same.

    These ratios are what two runs differ by anyhow.
    """
    found = list(comparisons.repeats(points, again))
    lengths = sorted({pair.other.context_tokens for pair in found})
    heads = {"sweep": lambda p: p.sweep, "attention": _attention} | _LOOP
    headings = [*heads, *(f"{length:,}" for length in lengths), "ranges touch", "same answers"]
    rows = []

    def key_of(pair: Pair) -> tuple[str, ...]:
        return tuple(str(head(pair.other)) for head in heads.values())

    for key, mine in grouped(found, key_of).items():
        at = grouped(mine, lambda pair: pair.other.context_tokens)
        times = [" / ".join(_ratios(at.get(n, []), name) for name in _TIMES) for n in lengths]
        touch = " / ".join(_touching(mine, name) for name in _TIMES)
        same = [same for pair in mine for same in _same_answers(pair)]
        rows.append([*key, *times, touch, f"{sum(same)} of {len(same)}"])
    about = "TTFT / decode time a token, times the first run's; requests' ranges that touch"
    yield f"repeats: {about}", markdown(headings, rows)


_TIMES = ("ttft_ms", "ms_per_token_decode")


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
    ranges = [p for p in found if min(len(q.values(name)) for q in p.points) > 1]
    agreeing = sum(comparisons.agree(pair, name) for pair in ranges)
    return f"{agreeing} of {len(ranges)}" if ranges else "-"


def _same_answers(pair: Pair) -> list[bool]:
    outputs = ([s["output"] for row in p.rows for s in row["samples"]] for p in pair.points)
    return [first == second for first, second in zip(*outputs, strict=False)]


def _attention(point: Point) -> str:
    return f"`{point.setting('ATTN_IMPL')}`"


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
    parser = cli.parser(__doc__)
    parser.add_argument("folder", type=Path, help="LOGDIR of the sweeps")
    parser.add_argument("--repeat", type=Path, help="LOGDIR of the same sweeps, run again")
    arguments = parser.parse_args()
    for name, text in blocks(arguments.folder, arguments.repeat).items():
        print(f"{name}\n\n{commented(name, text)}\n")


if __name__ == "__main__":
    main()
