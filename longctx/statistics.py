"""Percentiles over requests, intervals over samples, and comparisons in pairs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_TAIL = 0.025  # of 95% intervals
_RESAMPLES = 2000
_FLIPS_AT_ONCE = 2000  # the p is the same for any; of all 10,000 no cache holds the numbers
_NO_WIDTH = 1e-12  # rounding, in units of a score
LEAST_REQUESTS = 6  # of fewer no interval of a median can be had: 2 * 0.5 ** 5 is more than 5%

# Of each value what it shares with others, such as a document; None of one that stands alone.
Clusters = Sequence[str | None]


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    return float(np.mean(values)) if values else None


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Percentile with linear interpolation; None of nothing."""
    return float(np.percentile(values, percent)) if values else None


def mean_interval(
    values: Sequence[float], seed: int, clusters: Clusters | None = None
) -> list[float] | None:
    """95% interval of the mean of scores from 0 to 1; None of fewer than two clusters.

    The Bayesian bootstrap over clusters (Rubin 1981, "The Bayesian Bootstrap"), to which half an
    average cluster of zeros and half of ones are added, for the scores that few samples miss. Of
    independent scores that are all 0 or 1 it is Jeffreys' interval of a proportion, computed
    exactly. It reaches 0 or 1 where every score is there.
    """
    from scipy import stats

    sums, sizes = _by_cluster(values, clusters)
    count = len(sums)
    if count < 2:
        return None
    right = float(sum(values))
    if count == len(values) and set(values) <= {0, 1}:
        low, high = stats.beta.ppf([_TAIL, 1 - _TAIL], right + 0.5, count - right + 0.5)
    else:
        rng = np.random.default_rng(seed)
        weights = rng.standard_exponential((_RESAMPLES, count))
        zeros, ones = rng.standard_gamma(0.5, (2, _RESAMPLES)) * sizes.mean()
        means = (weights @ sums + ones) / (weights @ sizes + zeros + ones)
        low, high = np.quantile(means, [_TAIL, 1 - _TAIL])
    return [float(low) if right else 0.0, float(high) if right < len(values) else 1.0]


def paired_interval(
    differences: Sequence[float], clusters: Clusters | None = None
) -> list[float] | None:
    """95% interval of the mean of differences from -1 to 1; None of fewer than two clusters.

    The t interval; of clusters with the bias-reduced variance CR2 and Satterthwaite's degrees of
    freedom (Bell and McCaffrey 2002, "Bias Reduction in Standard Errors for Linear Regression with
    Multi-Stage Samples"), which for clusters of one are s² / n and n - 1. Clusters that all differ
    by the same would get no width: instead, a share of other ones that may have been missed is
    assumed, each as far off as a difference can be.
    """
    from scipy import stats

    sums, sizes = _by_cluster(differences, clusters)
    count = len(sums)
    if count < 2:
        return None
    total = sizes.sum()
    middle = sums.sum() / total
    shares = sizes / total
    error = math.sqrt(((sums - sizes * middle) ** 2 / (1 - shares)).sum()) / total
    if error < _NO_WIDTH:
        reach = 1 - _TAIL ** (1 / count)
        middle *= 1 - reach
    else:
        # As if all samples were alike: then the moments of CR2 are these.
        leverages = shares**2 / (1 - shares)
        freedom = 1 / ((shares**2).sum() + leverages.sum() ** 2 - (leverages**2).sum())
        reach = stats.t.isf(_TAIL, freedom) * error
    return [max(float(middle - reach), -1.0), min(float(middle + reach), 1.0)]


def paired_proportion_interval(gains: int, losses: int, count: int) -> list[float] | None:
    """95% interval of (gains - losses) / count, of 0/1 scores in pairs; None of fewer than two.

    gains, losses: samples that only the one or only the other answers right, of `count`.
    Tango's score interval (Statistics in Medicine 17, 1998): it stays honest where hardly any pair
    differs, and at a difference of 0 it is McNemar's test.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

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


def sign_flip_p(differences: Sequence[float], seed: int, clusters: Clusters | None = None) -> float:
    """Two-sided p of a mean difference of 0: the share of sign flips that give as large a mean.

    A cluster's differences flip together. Exact when 2 ** (clusters whose sum is not 0) is at most
    10,000, else of 10,000 draws.
    """
    from scipy.stats import permutation_test

    sums, _ = _by_cluster(differences, clusters)
    sums = sums[sums != 0]
    if len(sums) < 2:
        return 1.0  # of one, either sign is as large
    test = permutation_test(
        (sums,),
        np.mean,
        permutation_type="samples",
        n_resamples=10_000,
        batch=_FLIPS_AT_ONCE,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def mcnemar_p(gains: int, losses: int) -> float:
    """Two-sided exact p of McNemar's test: binomial over the pairs of 0/1 scores that differ.

    gains, losses: samples that only the one or only the other answers right.
    """
    from scipy.stats import binomtest

    return float(binomtest(gains, gains + losses).pvalue) if gains + losses else 1.0


def ratio_interval(
    reference: Sequence[float], other: Sequence[float], seed: int
) -> list[float] | None:
    """95% interval of median(other) / median(reference), over pairs; None of fewer than six.

    The values are positive, of the same requests in the same order. The percentile bootstrap over
    pairs; its tails are those that a t interval would have (Hesterberg 2015, "What Teachers Should
    Know About the Bootstrap", section 4.3). It says nothing of how another run would differ.
    """
    from scipy import stats

    count = len(reference)
    if count < LEAST_REQUESTS:
        return None

    def ratio(first: Any, second: Any, axis: int = -1) -> Any:
        return np.median(second, axis=axis) / np.median(first, axis=axis)

    tail = stats.norm.cdf(math.sqrt(count / (count - 1)) * stats.t.ppf(_TAIL, count - 1))
    interval = stats.bootstrap(
        (np.asarray(reference, dtype=float), np.asarray(other, dtype=float)),
        ratio,
        paired=True,
        n_resamples=_RESAMPLES,
        confidence_level=1 - 2 * tail,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [float(interval.low), float(interval.high)]


def _by_cluster(values: Sequence[float], clusters: Clusters | None) -> tuple[Any, Any]:
    """The sum and the number of the values of each cluster, in order of appearance."""
    numbers: dict[Any, int] = {}
    # A value whose cluster is not known is one of its own, by a key that no cluster has.
    cluster_of = [
        numbers.setdefault((index,) if name is None else name, len(numbers))
        for index, name in enumerate(clusters or [None] * len(values))
    ]
    sums = np.bincount(cluster_of, np.asarray(values, dtype=float), len(numbers))
    return sums, np.bincount(cluster_of, minlength=len(numbers)).astype(float)
