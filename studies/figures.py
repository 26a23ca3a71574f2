"""The figures of the study, from the sweeps' logs.

    python studies/figures.py logs/studies -o assets

A sweep that is not there has no figure. A point is the median of a length's requests, its bar
reaches from the fastest to the slowest; of quality the mean with its 95% interval. A cross at the
top of a panel is a length that ran out of memory.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from longctx import tables
from studies import lines, measurements
from studies.comparisons import SCORES
from studies.lines import Line
from studies.measurements import Point, grouped, of_sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_WIDTH, _ROW_HEIGHT, _DPI = 8.6, 2.9, 120  # inches: text stays legible in a README's 800 pixels
_COSTS = ("ttft_ms", "ms_per_token_decode", "peak_gpu_mem_gb")
_LABELS = {
    "ttft_ms": "time to first token, ms",
    "ms_per_token_decode": "decode, ms/token",
    "peak_gpu_mem_gb": "GPU peak, GB",
    "compress_ms": "choosing what stays, ms",
    "kv_cache_gb": "KV cache of a batch, GB",
    "tok_per_s_decode": "decode, tokens/s of the batch",
}
_LENGTH, _KEPT = "prompt, tokens", "share of the cache kept"


@dataclass(frozen=True)
class Panel:
    """Lines with what their axes say; x_label tells lengths and shares from costs."""

    lines: list[Line]
    x_label: str
    y_label: str


@dataclass(frozen=True)
class Row:
    """Panels side by side, with one legend."""

    title: str
    panels: list[Panel]


def attention(points: Sequence[Point]) -> "Figure":
    """Costs of each backend against length, a row for each batch."""
    mine = of_sweep(points, "attention")
    return _figure(_by_batch(mine, _COSTS, lines.attention_lines), mine, "Attention backends")


def kv(points: Sequence[Point]) -> "Figure":
    """Costs of each share kept against length, a row for each batch; then those of each method."""
    mine = [point for point in points if point.sweep.startswith("kv/")]
    rows = _by_batch(of_sweep(points, "kv/pays"), _COSTS[1:], lines.kv_lines)
    for (scope, length), found in grouped(
        of_sweep(points, "kv/methods"), lambda p: (p.setting("KV_SCOPE"), p.context_tokens)
    ).items():
        panels = [
            Panel(lines.method_lines(found, name), _KEPT, _LABELS[name])
            for name in ("compress_ms", "ms_per_token_decode")
        ]
        rows.append(Row(f"every method, KV_SCOPE={scope}, {length:,} tokens, batch 1", panels))
    return _figure(rows, mine, "KV pruning; dashed: the plain decode loop")


def quantization(points: Sequence[Point]) -> "Figure":
    """Costs of each format against length, a row for each batch; then together with pruning."""
    mine = of_sweep(points, "quantization")
    rows = _by_batch(mine, _COSTS, lines.quantization_lines)
    together = of_sweep(points, "combined")
    rows += [
        Row(f"pruned, {row.title}", row.panels)
        for row in _by_batch(together, _COSTS, lines.combined_lines)
    ]
    title = "Quantization; dashed: the plain decode loop; dotted: quantized weights, pruned"
    return _figure(rows, [*mine, *together], title)


def quality(points: Sequence[Point]) -> "Figure":
    """Each task's score against the cache's size and decode speed; a row for each data set.

    At the longest length that all have, pruned before the question is read.
    """
    mine = [p for p in points if p.sweep.startswith("quality/") and p.sweep.endswith("/context")]
    by_data = grouped(mine, lambda point: point.sweep.split("/")[1])
    length = max(set.intersection(*({p.context_tokens for p in ps} for ps in by_data.values())))
    mine = [point for point in mine if point.context_tokens == length]
    rows = []
    for data, found in grouped(mine, lambda point: point.sweep.split("/")[1]).items():
        score = SCORES[found[0].meta["task"]]
        n = found[0].summary["total_count"]
        panels = [
            Panel(lines.quality_lines(found, cost), _LABELS[cost], f"{score} x 100")
            for cost in ("kv_cache_gb", "tok_per_s_decode")
        ]
        shown = [panel for panel in panels if any(len(line.points) for line in panel.lines)]
        rows.append(Row(f"{data}, {n} samples, batch {found[0].batch}", shown))
    title = f"Quality at {length:,} tokens, pruned before the question is read, with 95% intervals"
    return _figure(rows, mine, title)


FIGURES: dict[str, tuple[tuple[str, ...], Callable[[Sequence[Point]], "Figure"]]] = {
    "attention_results.png": (("attention",), attention),
    "kv_results.png": (("kv/",), kv),
    "quant_results.png": (("quantization", "combined"), quantization),
    "quality_tradeoff.png": (("quality/",), quality),
}


def _by_batch(
    points: Sequence[Point],
    names: Sequence[str],
    lines_of: Callable[[Sequence[Point], str], list[Line]],
) -> list[Row]:
    return [
        Row(f"batch {batch}", [Panel(lines_of(mine, n), _LENGTH, _LABELS[n]) for n in names])
        for batch, mine in sorted(grouped(points, lambda point: point.batch).items())
    ]


def _figure(rows: Sequence[Row], points: Sequence[Point], title: str) -> "Figure":
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(_WIDTH, 0.6 + _ROW_HEIGHT * len(rows)), layout="constrained", dpi=_DPI)
    parts = drawn.subfigures(len(rows), 1, squeeze=False, hspace=0.04)[:, 0]
    for part, row in zip(parts, rows, strict=True):
        _row(part, row)
    requests = sorted({p.summary["n_requests"] for p in points if not p.out_of_memory})
    bars = f"{requests[0]} to {requests[-1]}" if requests[1:] else f"{requests[0]}"
    spread = "" if "95%" in title else f"; bars: fastest and slowest of {bars} requests"
    drawn.suptitle(f"{title}\n{measurements.about(points)}{spread}", fontsize=9.5)
    return drawn


def _row(part: "SubFigure", row: Row) -> None:
    axes = part.subplots(1, len(row.panels), squeeze=False)[0]
    for axis, panel in zip(axes, row.panels, strict=True):
        _panel(axis, panel)
    part.suptitle(row.title, fontsize=9, fontweight="bold", x=0.01, ha="left")
    handles: dict[str, Any] = {}
    for axis in axes:
        found, labels = axis.get_legend_handles_labels()
        handles = dict(zip(labels, found, strict=True)) | handles
    part.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8.5,
        frameon=False, columnspacing=1.5,
    )  # fmt: skip


def _panel(axis: "Axes", panel: Panel) -> None:
    count = len(panel.lines)
    is_length = panel.x_label == _LENGTH
    for place, line in enumerate(panel.lines):
        # Side by side, so that bars at one place can be told apart.
        shift = (place - (count - 1) / 2) * (0.006 if panel.x_label == _KEPT else 0.012)
        aside = (
            (lambda x, s=shift: x + s)
            if panel.x_label == _KEPT
            else (lambda x, s=shift: x * (1 + s))
        )
        colour, marker = line.style
        axis.errorbar(
            [aside(x) for x, *_ in line.points],
            [y for _, y, _, _ in line.points],
            yerr=[[y - low for _, y, low, _ in line.points],
                  [high - y for _, y, _, high in line.points]],
            color=colour, marker=marker, markersize=9 if marker == "*" else 5, linewidth=1.4,
            elinewidth=0.9, linestyle=line.dashes, label=line.label,
        )  # fmt: skip
        axis.plot(
            [aside(x) for x in line.out_of_memory],
            [0.97] * len(line.out_of_memory),
            transform=axis.get_xaxis_transform(),
            color=colour, marker="x", markersize=8, markeredgewidth=2, linestyle="",
        )  # fmt: skip
    axis.set_xlabel(panel.x_label, fontsize=9)
    axis.set_ylabel(panel.y_label, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if is_length:
        _log_lengths(axis, panel)
    elif panel.x_label == _KEPT:
        axis.set_xticks(sorted({x for line in panel.lines for x, *_ in line.points}))
        axis.invert_xaxis()


def _log_lengths(axis: "Axes", panel: Panel) -> None:
    """A length doubles from tick to tick; y is logarithmic where it spans more than a factor 4."""
    reached = {x for line in panel.lines for x, *_ in line.points}
    lengths = sorted(reached | {x for line in panel.lines for x in line.out_of_memory})
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [f"{x / 1024:g}K" if x >= 1024 else f"{x:g}" for x in lengths])
    axis.minorticks_off()
    values = [y for line in panel.lines for _, y, _, _ in line.points]
    if values and max(values) > 4 * min(values) > 0:
        from matplotlib.ticker import FuncFormatter

        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    elif values:
        axis.set_ylim(bottom=0)
    else:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", fontsize=9)
    if any(line.out_of_memory for line in panel.lines):
        axis.text(
            0.02, 0.97, "x: out of memory", transform=axis.transAxes, va="center", fontsize=7.5
        )


def main() -> None:
    """Write every figure whose sweep is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="LOGDIR of the sweeps")
    parser.add_argument("-o", "--output", type=Path, default=Path("assets"))
    arguments = parser.parse_args()
    points = measurements.read(arguments.folder)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, (sweeps, draw) in FIGURES.items():
        if any(point.sweep.startswith(sweeps) for point in points):
            draw(points).savefig(arguments.output / name)
            tables.print_paths([arguments.output / name])


if __name__ == "__main__":
    main()
