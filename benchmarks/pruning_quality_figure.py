"""The figure of `benchmarks/pruning_quality.py`: right answers against the share kept."""

from pathlib import Path
from typing import Any

# Okabe and Ito's colours, told apart by the colour-blind; markers tell them apart in grey.
_STYLES = {
    "l2": ("#D55E00", "o"),
    "l2 (high)": ("#D55E00", "x"),
    "keydiff": ("#0072B2", "s"),
    "expected_attention": ("#CC79A7", "^"),
    "snapkv": ("#009E73", "v"),
    "tova": ("#56B4E9", "D"),
    "window": ("#E69F00", "P"),
    "random": ("#000000", "+"),
}
_CONTROLS = ("l2 (high)", "window", "random")


def draw(report: dict[str, Any], path: Path) -> None:
    """A panel for each task, scope and context length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = report["cells"]
    lines = list(dict.fromkeys((cell["task"], cell["scope"]) for cell in cells))
    contexts = sorted({cell["context_tokens"] for cell in cells})
    figure, axes = pyplot.subplots(
        len(lines),
        len(contexts),
        figsize=(3.2 * len(contexts), 2.5 * len(lines)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for (task, scope), row in zip(lines, axes, strict=True):
        for context_tokens, axis in zip(contexts, row, strict=True):
            here = [c for c in cells if (c["task"], c["scope"]) == (task, scope)]
            here = [c for c in here if c["context_tokens"] == context_tokens]
            if not here:
                axis.set_axis_off()
                continue
            (full,) = (cell for cell in here if cell["method"] == "full")
            for method, (colour, marker) in _STYLES.items():
                points = [full, *(cell for cell in here if cell["method"] == method)]
                _line(axis, points, method, colour, marker)
            axis.set_title(f"{task}, KV_SCOPE={scope}, {context_tokens:,} tokens", fontsize=8)
            axis.grid(alpha=0.3)
            axis.set_xlim(1.03, 0.2)
            axis.set_ylim(-3, 103)
            axis.set_xticks([1.0, 0.9, 0.7, 0.5, 0.25])
            axis.tick_params(labelsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("share of the cache kept", fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("right answers, %", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    trials = cells[0]["n"]
    figure.suptitle(
        f"{report['model']}, {report['dtype']}, {trials} trials a point, bars: 95% (Wilson); "
        f"dashed: controls",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)


def _line(axis: Any, points: list[dict[str, Any]], method: str, colour: str, marker: str) -> None:
    shares = [100 * cell["right"] / cell["n"] for cell in points]
    below = [share - 100 * cell["ci95"][0] for share, cell in zip(shares, points, strict=True)]
    above = [100 * cell["ci95"][1] - share for share, cell in zip(shares, points, strict=True)]
    # Side by side, so that intervals of the same ratio can be told apart.
    shift = (list(_STYLES).index(method) - len(_STYLES) / 2) * 0.006
    axis.errorbar(
        [cell["keep_ratio"] + shift for cell in points],
        shares,
        yerr=[[max(0, value) for value in below], [max(0, value) for value in above]],
        color=colour,
        marker=marker,
        markersize=4,
        linewidth=1,
        elinewidth=0.6,
        linestyle="--" if method in _CONTROLS else "-",
        label=method,
    )
