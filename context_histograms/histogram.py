"""A histogram of token counts with the median and the suite's context lengths, for two figures."""

import importlib.util
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from context_histograms.count_tokens import DataSettings, Result, measure, samples_by_tokens
from longctx import data, results
from longctx.config import Environment
from longctx.errors import CannotRunError
from longctx.settings import Settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# As seen from where the script is started, so that no help text names this machine's folders.
FOLDER = os.path.relpath(Path(__file__).resolve().with_name("plots"))

# Okabe and Ito's colours, told apart with any colour vision; hatches tell them apart in grey.
_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2")
_HATCHES = ("", "///", "...", "xxx", "---", "\\\\\\")
_MEDIAN_COLOUR, _CONTEXT_COLOUR = "#D55E00", "#555555"


def bin_edges(tokens: Sequence[int]) -> np.ndarray:
    """Edges at powers of the square root of two, around all counts and the suite's contexts."""
    half_octaves = 2 * np.log2([max(number, 1) for number in (*tokens, *Settings.contexts)])
    first, last = np.floor(half_octaves.min()) - 1, np.floor(half_octaves.max()) + 1
    return np.exp2(np.arange(first, last + 1) / 2)


def figure(panels: Mapping[str, Result]) -> "Figure":
    """A panel for each title and result of `count_tokens.measure`, all on one axis of tokens.

    Bars are texts, stacked by label where the result has labels; a text of no tokens stands at 1.
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 1.4 + 2.9 * len(panels)), layout="constrained")
    axes = drawn.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    tokens = [entry["tokens"] for result in panels.values() for entry in result["counts"]]
    edges = bin_edges(tokens)
    for axis, (title, result) in zip(axes, panels.items(), strict=True):
        _draw(axis, result, edges)
        summary = result["summary"]
        size = f"{summary['n_texts']:,} different texts, {summary['n_samples']:,} samples"
        axis.set_title(f"{title}: {size}", loc="left", pad=18)
    powers = [2**power for power in range(24) if edges[0] <= 2**power <= edges[-1]]
    axes[-1].set_xscale("log", base=2)
    axes[-1].set_xticks(powers, [f"{power:,}" for power in powers], rotation=30, ha="right")
    axes[-1].minorticks_off()
    axes[-1].set_xlim(edges[0], edges[-1])
    axes[-1].set_xlabel("length in tokens (log scale, two bins a doubling)")
    source = next(iter(panels.values()))
    caption = (
        f"Data: {source['dataset']}. Tokenizer: {source['tokenizer']}. "
        "Each text counts once, without prompt or special tokens."
    )
    drawn.supxlabel(caption, fontsize=8, x=0.01, ha="left")
    return drawn


def _draw(axis: "Axes", result: Result, edges: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    groups = list(result["groups"]) or [None]
    lengths = [
        [max(tokens, 1) for tokens, _ in samples_by_tokens(result["counts"], label)]
        for label in groups
    ]
    names = [
        f"{label} ({len(values):,})" for label, values in zip(groups, lengths, strict=True) if label
    ]
    places = range(len(groups))
    axis.hist(
        lengths,
        bins=list(edges),
        stacked=True,
        color=[_COLOURS[place % len(_COLOURS)] for place in places],
        hatch=[_HATCHES[place % len(_HATCHES)] for place in places],
        edgecolor="white",
        label=names or None,
    )
    median = result["summary"]["p50"]
    axis.axvline(median, color=_MEDIAN_COLOUR, lw=2, label=f"median {median:,.0f}")
    for context_tokens in Settings.contexts:
        axis.axvline(context_tokens, color=_CONTEXT_COLOUR, lw=1, ls="--")
        share = result["summary"]["texts_that_fit"][str(context_tokens)]
        axis.annotate(
            f"{share:.0%} fit",
            (context_tokens, 1.02),
            xycoords=("data", "axes fraction"),
            ha="center",
            fontsize=8,
            color=_CONTEXT_COLOUR,
        )
    axis.plot([], [], color=_CONTEXT_COLOUR, lw=1, ls="--", label="context lengths of the suite")
    axis.set_ylabel("number of texts")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False, fontsize=8)


def plot(
    name: str,
    counted: Mapping[str, tuple[str, str | None]],
    settings: DataSettings,
    environ: Environment,
    folder: Path,
) -> list[Path]:
    """Count, draw, and write `{name}.json` and `{name}.png`, which holds the JSON's fingerprint.

    counted: the field of each panel's texts and of their labels, or None, by the panel's title.
    Raises CannotRunError without matplotlib, before anything is counted in vain.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise CannotRunError("figures need the package matplotlib: pip install matplotlib")
    import matplotlib

    command = {"command": environ.command(settings, f"context_histograms/plot_{name}.py")}
    panels = {title: measure(settings, *of) | command for title, of in counted.items()}
    text = json.dumps(panels, indent=1) + "\n"
    paths = [folder / f"{name}.json", folder / f"{name}.png"]
    image = io.BytesIO()
    # A dollar sign in a label or a file's name begins no formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        metadata = {"Description": data.fingerprint([text])}
        figure(panels).savefig(image, format="png", dpi=110, metadata=metadata)
    results.write_whole(paths[0], text)
    results.write_whole(paths[1], image.getvalue())
    return paths
