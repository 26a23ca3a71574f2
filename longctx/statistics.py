"""Percentiles over requests and bootstrap intervals over samples."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap

_RESAMPLES = 2000


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    return float(np.mean(values)) if values else None


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Percentile with linear interpolation; None of nothing."""
    return float(np.percentile(values, percent)) if values else None


def mean_interval(values: Sequence[float], seed: int) -> list[float] | None:
    """95% percentile-bootstrap interval of the mean over samples; None of fewer than two."""
    if len(values) < 2:
        return None
    interval = bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        n_resamples=_RESAMPLES,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [float(interval.low), float(interval.high)]
