"""Histograms of NarrativeQA's lengths in tokens, full texts above and summaries below.

Counts both fields as count_tokens.py does, each document once however many questions it has, and
writes narrativeqa_tokens.png and narrativeqa_tokens.json, the counts behind it, into LOGDIR.
"""

from dataclasses import dataclass
from functools import partial

from context_histograms import histogram
from context_histograms.count_tokens import DataSettings, main
from longctx.settings import redefault

FIELDS = {
    "NarrativeQA, full texts": ("document.text", None),
    "summaries": ("document.summary.text", None),
}


@dataclass(frozen=True)
class NarrativeQASettings(DataSettings):
    """The settings of this script."""

    logdir: str = redefault("logdir", histogram.FOLDER)


plot = partial(histogram.plot, "narrativeqa_tokens", FIELDS)

if __name__ == "__main__":
    main(NarrativeQASettings, __doc__, plot)
