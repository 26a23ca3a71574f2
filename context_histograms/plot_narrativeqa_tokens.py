"""Histograms of NarrativeQA's lengths in tokens, full texts above and summaries below.

Counts both fields as count_tokens.py does, each document once however many questions it has, and
writes narrativeqa_tokens.png and narrativeqa_tokens.json, the counts behind it, into LOGDIR.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from context_histograms import histogram
from context_histograms.count_tokens import DataSettings, main, measure
from longctx.config import Environment
from longctx.settings import redefault

FIELDS = {"NarrativeQA, full texts": "document.text", "summaries": "document.summary.text"}


@dataclass(frozen=True)
class NarrativeQASettings(DataSettings):
    """The settings of this script."""

    logdir: str = redefault("logdir", histogram.FOLDER)


def plot(settings: NarrativeQASettings, environ: Environment, folder: Path) -> list[Path]:
    """Count, draw and write the two files."""
    histogram.require_matplotlib()
    command = {
        "command": environ.command(settings, "context_histograms/plot_narrativeqa_tokens.py")
    }
    panels = {title: measure(settings, field) | command for title, field in FIELDS.items()}
    return histogram.save(folder, "narrativeqa_tokens", panels)


if __name__ == "__main__":
    main(NarrativeQASettings, __doc__, plot)
