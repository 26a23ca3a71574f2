"""The figures of the study, from the sweeps' logs.

    python studies/figures.py logs/studies -o assets

A sweep that is not there has no figure. A point is the median of a length's requests, its bar
reaches from the fastest to the slowest; of quality the mean with its 95% interval. A cross at the
top of a panel is a length that ran out of memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longctx import cli, figures, outcomes, tables
from studies import lines, measurements
from studies.comparisons import main_score
from studies.lines import Line
from studies.measurements import Point, grouped, of_sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Inches: text stays legible in a README's 800 pixels.
_WIDTH, _ROW_HEIGHT, _LEGEND_HEIGHT, _DPI = 8.6, 2.45, 0.5, 120
_SCORES = {"contains": "answer holds it", "meteor": "METEOR", "f1": "F1", "em": "exact match"}
_LENGTH, _KEPT = "prompt, tokens", "share of the cache kept"


@dataclass(frozen=True)
class Panel:
    """Lines with what their axes say; x_label tells lengths and shares from costs.

    reference: the line whose first interval is drawn as a band.
    """

    lines: list[Line]
    x_label: str
    y_label: str
    reference: str | None = None


@dataclass(frozen=True)
class Row:
    """Panels side by side; rows of the same labels share a legend."""

    title: str
    panels: list[Panel]


def attention(points: Sequence[Point]) -> "Figure":
    """Costs of each backend against length, a row for each batch; whole prefills."""
    mine = of_sweep(points, "attention/whole")
    title = "Attention backends, whole prefill, plain decode loop"
    return _figure(_by_batch(mine, lines.attention_lines), mine, title)


def kv(points: Sequence[Point]) -> "Figure":
    """Costs of each share kept against length, a row for each batch; then those of each method."""
    mine = [point for point in points if point.sweep.startswith("kv/")]
    rows = []
    for batch, found in sorted(grouped(of_sweep(points, "kv/pays"), lambda p: p.batch).items()):
        captured, plain = ([p for p in found if p.decode == loop] for loop in ("graph", "eager"))
        panels = [
            Panel(lines.kv_lines(shown, name), _LENGTH, f"{figures.named(name).heading}{loop}")
            for shown, name, loop in (
                (captured, "ms_per_token_decode", ", captured"),
                (plain, "ms_per_token_decode", ", plain loop"),
                (captured or plain, "peak_gpu_mem_gb", ""),
            )
        ]
        rows.append(Row(f"batch {batch}", panels))
    for (scope, length), found in grouped(
        of_sweep(points, "kv/methods"), lambda p: (p.setting("KV_SCOPE"), p.context_tokens)
    ).items():
        panels = [
            Panel(lines.method_lines(found, name), _KEPT, figures.named(name).heading)
            for name in ("compress_ms", "ms_per_token_decode")
        ]
        rows.append(Row(f"every method, KV_SCOPE={scope}, {length:,} tokens, batch 1", panels))
    return _figure(rows, mine, "KV pruning")


def quantization(points: Sequence[Point]) -> "Figure":
    """Costs of each format against length, a row for each batch; then together with pruning."""
    mine = of_sweep(points, "quantization")
    rows = _by_batch(mine, lines.quantization_lines)
    together = of_sweep(points, "combined")
    rows += [
        Row(f"pruned, {row.title}", row.panels) for row in _by_batch(together, lines.combined_lines)
    ]
    title = "Quantization; dashed: the plain decode loop; dotted: quantized weights, pruned"
    return _figure(rows, [*mine, *together], title)


def quality(
    points: Sequence[Point], wanted_length: int = 1024, data: Sequence[str] = ()
) -> "Figure":
    """Each task's score against the cache's size and a step's time; a row for each data set.

    Pruned before the question is read, at that length of all data sets that is next to the one
    wanted. data: names of their folders; all where there are none.
    """
    mine = [
        point
        for point in points
        if point.sweep.startswith("quality/")
        and point.sweep.endswith("/context")
        and (not data or point.sweep.split("/")[1] in data)
    ]
    lengths = ({p.context_tokens for p in ps} for ps in grouped(mine, lambda p: p.sweep).values())
    length = min(set.intersection(*lengths), key=lambda known: abs(known - wanted_length))
    mine = [point for point in mine if point.context_tokens == length]
    rows = []
    for name, found in grouped(mine, lambda point: point.sweep.split("/")[1]).items():
        score = main_score(found[0].meta)
        counts = sorted({point.summary["total_count"] for point in found})
        n = " to ".join(dict.fromkeys(f"{count:,}" for count in (counts[0], counts[-1])))
        panels = [
            Panel(
                lines.quality_lines(found, cost),
                figures.named(cost).heading,
                _SCORES.get(score, score),
                "full",
            )
            for cost in figures.QUALITY_AGAINST
        ]
        device = found[0].meta["device"]["name"]
        rows.append(Row(f"{name}, {n} samples, batch {found[0].batch}, {device}", panels))
    title = f"Quality at {length:,} tokens, pruned before the question is read, with 95% intervals"
    return _figure(rows, mine, title)


def _by_batch(
    points: Sequence[Point], lines_of: Callable[[Sequence[Point], str], list[Line]]
) -> list[Row]:
    costs = figures.shown(figures.STUDY)
    return [
        Row(f"batch {batch}", [Panel(lines_of(mine, c.key), _LENGTH, c.heading) for c in costs])
        for batch, mine in sorted(grouped(points, lambda point: point.batch).items())
    ]


def _figure(rows: Sequence[Row], points: Sequence[Point], title: str) -> "Figure":
    from matplotlib.figure import Figure

    labels = [dict.fromkeys(line.label for p in row.panels for line in p.lines) for row in rows]
    has_legend = [mine != below for mine, below in zip(labels, [*labels[1:], None], strict=True)]
    heights = [_ROW_HEIGHT + _LEGEND_HEIGHT * has for has in has_legend]
    drawn = Figure(figsize=(_WIDTH, 0.5 + sum(heights)), layout="constrained", dpi=_DPI)
    parts = drawn.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, row, has in zip(parts, rows, has_legend, strict=True):
        part.suptitle(row.title, fontsize=9, fontweight="bold", x=0.01, ha="left")
        axes = part.subplots(1, len(row.panels), squeeze=False)[0]
        for axis, panel in zip(axes, row.panels, strict=True):
            _panel(axis, panel)
        if has:
            _legend(part, axes)
    caption = [title, measurements.about(points)]
    if any(panel.reference is None for row in rows for panel in row.panels):
        counts = sorted({len(outcomes.timed(p.rows)) for p in points if not p.out_of_memory})
        caption[1] += (
            f"; bars: fastest and slowest of {' or '.join(map(str, counts))} requests"
            if counts[-1] > 1
            else "; one request a point"
        )
    if any(point.out_of_memory for point in points):
        caption[1] += "; x: out of memory"
    drawn.suptitle("\n".join(caption), fontsize=9.5)
    return drawn


def _legend(part: "SubFigure", axes: Sequence["Axes"]) -> None:
    handles: dict[str, Any] = {}
    for axis in axes:
        found, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    part.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8.5,
        frameon=False, columnspacing=1.5,
    )  # fmt: skip


def _panel(axis: "Axes", panel: Panel) -> None:
    for place, line in enumerate(panel.lines):
        # Side by side, so that bars and crosses at one place can be told apart.
        shift = place - (len(panel.lines) - 1) / 2
        apart = {_LENGTH: 0.012, _KEPT: 0.006}.get(panel.x_label, 0.003)
        aside = [x + apart * shift * (1 if panel.x_label == _KEPT else x) for x, *_ in line.points]
        colour, marker = line.style
        below = [y - low for _, y, low, _ in line.points]
        above = [high - y for _, y, _, high in line.points]
        axis.errorbar(
            aside, [y for _, y, _, _ in line.points], yerr=[below, above],
            color=colour, marker=marker, markersize=9 if marker == "*" else 5, linewidth=1.4,
            elinewidth=0.9, linestyle=line.dashes, label=line.label,
        )  # fmt: skip
        axis.plot(
            [x * (1 + 0.04 * shift) for x in line.out_of_memory], [0.95] * len(line.out_of_memory),
            transform=axis.get_xaxis_transform(), color=colour, marker="x", markersize=7,
            markeredgewidth=2, linestyle="",
        )  # fmt: skip
        if line.label == panel.reference:
            axis.axhspan(
                line.points[0][2], line.points[0][3], color=colour, alpha=0.08, linewidth=0
            )
    axis.set_xlabel(panel.x_label, fontsize=9)
    axis.set_ylabel(panel.y_label, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if not any(line.points for line in panel.lines):
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    if panel.x_label == _LENGTH:
        _log_scales(axis, panel)
    elif panel.x_label == _KEPT:
        axis.set_xticks(sorted({x for line in panel.lines for x, *_ in line.points}))
        axis.invert_xaxis()


def _log_scales(axis: "Axes", panel: Panel) -> None:
    """Lengths are ticks of a logarithmic axis; y is one where it spans more than a factor of 8."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    reached = {x for line in panel.lines for x, *_ in line.points}
    lengths = sorted(reached | {x for line in panel.lines for x in line.out_of_memory})
    axis.set_xscale("log", base=2)
    if len(lengths) == 1:
        axis.set_xlim(lengths[0] / 2, lengths[0] * 2)
    axis.set_xticks(lengths, [f"{x / 1024:g}K" if x >= 1024 else f"{x:g}" for x in lengths])
    axis.xaxis.set_minor_locator(NullLocator())
    highest = [high for line in panel.lines for *_, high in line.points]
    lowest = [low for line in panel.lines for _, _, low, _ in line.points]
    room = any(line.out_of_memory for line in panel.lines)
    if lowest and max(highest) > 8 * min(lowest) > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_ylim(min(lowest) * 0.8, max(highest) * (2 if room else 1.25))
    elif lowest:
        axis.set_ylim(0, max(highest) * (1.25 if room else 1.1))


def main() -> None:
    """Write every figure whose sweep is there."""
    parser = cli.parser(__doc__)
    parser.add_argument("folder", type=Path, help="LOGDIR of the sweeps")
    parser.add_argument("-o", "--output", type=Path, default=Path("assets"))
    parser.add_argument(
        "--quality-length", type=int, default=1024, help="prompts of the quality figure, in tokens"
    )
    parser.add_argument(
        "--quality-data",
        type=lambda names: names.split(","),
        default=[],
        help="data sets of the quality figure, by their folders; all where left out",
    )
    arguments = parser.parse_args()
    points = measurements.read(arguments.folder)
    known = {p.sweep.split("/")[1] for p in points if p.sweep.startswith("quality/")}
    if unknown := set(arguments.quality_data) - known:
        parser.error(
            f"--quality-data={','.join(sorted(unknown))}: there are {', '.join(sorted(known))}"
        )
    arguments.output.mkdir(parents=True, exist_ok=True)
    trade_off = partial(
        quality, wanted_length=arguments.quality_length, data=arguments.quality_data
    )
    for name, sweeps, draw in (
        ("attention_results.png", "attention", attention),
        ("kv_results.png", "kv/", kv),
        ("quant_results.png", ("quantization", "combined"), quantization),
        ("quality_tradeoff.png", "quality/", trade_off),
    ):
        if any(point.sweep.startswith(sweeps) for point in points):
            draw(points).savefig(arguments.output / name)
            tables.print_paths([arguments.output / name])


if __name__ == "__main__":
    main()
