"""Histogram of LongBench-v2's lengths in tokens, stacked by its length classes.

Counts `context` as count_tokens.py does and writes longbench_tokens.png and longbench_tokens.json,
the counts behind it, into LOGDIR. GROUP_BY=difficulty or domain stacks by these.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen

from context_histograms import histogram
from context_histograms.count_tokens import DATASET_HELP, DataSettings, main
from longctx.config import Environment, variable
from longctx.settings import redefault


@dataclass(frozen=True)
class LongBenchSettings(DataSettings):
    """The settings of this script."""

    dataset_id: Annotated[str, MinLen(1)] = variable("zai-org/LongBench-v2", DATASET_HELP)
    split: str = redefault("split", "train")
    group_by: Annotated[str, MinLen(1)] = variable("length", "field with the label to stack by")
    logdir: str = redefault("logdir", histogram.FOLDER)


def plot(settings: LongBenchSettings, environ: Environment, folder: Path) -> list[Path]:
    """Count, draw and write the two files."""
    panels = {f"LongBench-v2 by {settings.group_by}": ("context", settings.group_by)}
    return histogram.plot("longbench_tokens", panels, settings, environ, folder)


if __name__ == "__main__":
    main(LongBenchSettings, __doc__, plot)
