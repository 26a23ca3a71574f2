"""Percentiles over requests and intervals over samples."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest, bootstrap

_CONFIDENCE = 0.95
_RESAMPLES = 2000


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    return float(np.mean(values)) if values else None


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Percentile with linear interpolation; None of nothing."""
    return float(np.percentile(values, percent)) if values else None


def mean_interval(values: Sequence[float], seed: int) -> list[float] | None:
    """95% interval of the mean of scores from 0 to 1; None of fewer than two.

    Of scores that are all 0 or 1, the exact interval of a proportion (Clopper and Pearson 1934);
    of others the percentile bootstrap over samples. Scores that are all the same, of which the
    bootstrap would make an interval of no width, get the proportion of other scores that may have
    been missed, each as far off as a score can be: at 0 and 1 that is the exact interval again.
    """
    count = len(values)
    if count < 2:
        return None
    if set(values) <= {0, 1}:
        test = binomtest(round(sum(values)), count)
        interval = test.proportion_ci(_CONFIDENCE, method="exact")
    elif len(set(values)) == 1:
        missed = 1 - ((1 - _CONFIDENCE) / 2) ** (1 / count)
        return [(1 - missed) * values[0], (1 - missed) * values[0] + missed]
    else:
        interval = bootstrap(
            (np.asarray(values, dtype=float),),
            np.mean,
            n_resamples=_RESAMPLES,
            confidence_level=_CONFIDENCE,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return [float(interval.low), float(interval.high)]
