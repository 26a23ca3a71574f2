"""Percentiles over requests, intervals over samples, and comparisons in pairs."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, bootstrap, norm, permutation_test, t

_CONFIDENCE = 0.95
_TAIL = (1 - _CONFIDENCE) / 2
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
        missed = 1 - _TAIL ** (1 / count)
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


def paired_interval(differences: Sequence[float], seed: int) -> list[float] | None:
    """95% interval of the mean of differences from -1 to 1, one a sample; None of fewer than two.

    The percentile bootstrap over samples, widened for small samples (Hesterberg 2015, "What
    Teachers Should Know About the Bootstrap", section 4.3). Samples count as independent.
    Differences that are all the same would get no width: instead, a share of other samples that may
    have been missed is assumed, each as far off as a difference can be.
    """
    count = len(differences)
    if count < 2:
        return None
    if len(set(differences)) == 1:
        missed = 1 - _TAIL ** (1 / count)
        middle = (1 - missed) * differences[0]
        return [middle - missed, middle + missed]
    values = np.asarray(differences, dtype=float)
    return _bootstrap_interval((values,), np.mean, count, seed)


def paired_proportion_interval(gains: int, losses: int, count: int) -> list[float] | None:
    """95% interval of (gains - losses) / count, of 0/1 scores in pairs; None of fewer than two.

    gains, losses: samples that only the one or only the other answers right, of `count`.
    Tango's score interval (Statistics in Medicine 17, 1998): it stays honest where hardly any pair
    differs, and at a difference of 0 it is McNemar's test.
    """
    if count < 2:
        return None
    z = float(norm.isf(_TAIL))

    def surplus(difference: float, side: int) -> float:
        """Tango's statistic beyond `side` * z, rising with the estimate's distance."""
        b = (2 * count - gains + losses) * difference - gains - losses
        c = -losses * difference * (1 - difference)
        share = (math.sqrt(max(b * b - 8 * count * c, 0)) - b) / (4 * count)
        variance = count * (2 * share + difference * (1 - difference))
        return gains - losses - count * difference - side * z * math.sqrt(max(variance, 0))

    estimate = (gains - losses) / count
    # At the estimate itself the variance can be 0, which is no bound of the interval.
    low = -1.0 if losses == count else brentq(surplus, -1, estimate - 1e-9, args=(1,))
    high = 1.0 if gains == count else brentq(surplus, estimate + 1e-9, 1, args=(-1,))
    return [float(low), float(high)]


def sign_flip_p(differences: Sequence[float], seed: int) -> float:
    """Two-sided p of a mean difference of 0: the share of sign flips that give as large a mean.

    Exact when 2 ** (differences that are not 0) is at most 10,000, else of 10,000 draws.
    """
    values = np.asarray([d for d in differences if d], dtype=float)
    if len(values) < 2:
        return 1.0  # of one, either sign is as large
    test = permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        n_resamples=10_000,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def mcnemar_p(gains: int, losses: int) -> float:
    """Two-sided exact p of McNemar's test: binomial over the pairs of 0/1 scores that differ.

    gains, losses: samples that only the one or only the other answers right.
    """
    return float(binomtest(gains, gains + losses).pvalue) if gains + losses else 1.0


def ratio_interval(
    reference: Sequence[float], other: Sequence[float], seed: int
) -> list[float] | None:
    """95% percentile-bootstrap interval of median(other) / median(reference), over pairs.

    The values are positive, of the same requests in the same order. None of fewer than two.
    """
    if len(reference) < 2:
        return None

    def ratio(first: Any, second: Any, axis: int = -1) -> Any:
        return np.median(second, axis=axis) / np.median(first, axis=axis)

    pairs = (np.asarray(reference, dtype=float), np.asarray(other, dtype=float))
    return _bootstrap_interval(pairs, ratio, len(reference), seed)


def _bootstrap_interval(
    samples: tuple[Any, ...], statistic: Callable[..., Any], count: int, seed: int
) -> list[float]:
    """Percentile bootstrap over pairs; its tails are those that a t interval would have."""
    tail = norm.cdf(math.sqrt(count / (count - 1)) * t.ppf(_TAIL, count - 1))
    interval = bootstrap(
        samples,
        statistic,
        paired=True,
        n_resamples=_RESAMPLES,
        confidence_level=1 - 2 * tail,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [float(interval.low), float(interval.high)]
