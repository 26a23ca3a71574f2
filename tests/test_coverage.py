"""How often 95% intervals hold the truth, in simulations."""

import itertools

import numpy as np
import pytest
from scipy.stats import binom, norm

from longctx import load_results, statistics
from tests import docs

COUNTS = (6, 20, 76, 500)


def mixture(zeros, ones, a, b):
    """METEOR-like scores: a share of zeros, a few ones, skewed between."""
    rng = np.random.default_rng(0)
    chance, between = rng.random(4000), rng.beta(a, b, 4000)
    return np.where(chance < zeros, 0.0, np.where(chance > 1 - ones, 1.0, between))


def committed(data, score):
    """Scores of the full cache's answers in the study's logs, at all lengths."""
    folder = docs.ROOT / "logs/studies/quality" / data / "prompt"
    (path,) = folder.glob("*_KVnone_*_full.json.gz")
    rows = load_results.read(path)["rows"]
    return np.array([sample[score] for row in rows for sample in row["samples"]])


def populations():
    yield mixture(0.5, 0.03, 2, 5)
    yield mixture(0.7, 0.05, 2, 5)
    yield mixture(0.3, 0.1, 1.5, 3)
    yield mixture(0.05, 0.6, 3, 1)
    yield mixture(0, 0, 2, 6)
    yield committed("narrativeqa-synthetic", "meteor")
    yield committed("hotpotqa-hotpotqa_distractor", "f1")
    yield committed("hotpotqa-synthetic", "f1")


def share_held(draws):
    """Of pairs of an interval and the truth."""
    return np.mean([low - 1e-9 <= truth <= high + 1e-9 for (low, high), truth in draws])


@pytest.mark.parametrize("count", COUNTS)
def test_intervals_of_proportions_hold_what_they_claim(count):
    """Exactly, at rates from 0.05 to 0.95: counts are few, so it cannot be 95% at each."""
    intervals = np.array(
        [
            statistics.mean_interval([1.0] * right + [0.0] * (count - right), seed=0)
            for right in range(count + 1)
        ]
    )
    rates = np.linspace(0.05, 0.95, 181)[:, None]
    holds = (intervals[:, 0] <= rates) & (rates <= intervals[:, 1])
    held = (binom.pmf(np.arange(count + 1), count, rates) * holds).sum(axis=1)
    assert 0.94 < held.mean() < 0.96
    assert held.min() > 0.88


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_intervals_of_means_hold_what_they_claim(count):
    trials = 1000 if count < 100 else 300
    rng = np.random.default_rng(count)
    held = [
        share_held(
            (statistics.mean_interval(list(rng.choice(scores, count)), seed), scores.mean())
            for seed in range(trials)
        )
        for scores in populations()
    ]
    assert 0.93 < np.mean(held) < 0.975
    assert min(held) > 0.91


def questions(rng, count):
    """The document of each question: 3 to 30 about each of `count`."""
    return np.repeat(np.arange(count), rng.integers(3, 31, count))


def answered(rng, documents, scores, correlation):
    """A score of the distribution for each question; normal scores correlate in a document."""
    own = rng.normal(size=len(documents)) * np.sqrt(1 - correlation)
    shared = rng.normal(size=documents.max() + 1) * np.sqrt(correlation)
    return np.quantile(scores, norm.cdf(own + shared[documents]), method="inverted_cdf")


CLUSTERED = list(
    itertools.product(
        (4, 10), (0.0, 0.25, 0.5), (mixture(0.5, 0.03, 2, 5), np.array([0.0, 0.0, 0.0, 1.0]))
    )
)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "correlation", "scores"), CLUSTERED)
def test_intervals_over_few_documents_hold_what_they_claim(count, correlation, scores):
    rng = np.random.default_rng(count)

    def draw(seed):
        documents = questions(rng, count)
        mine = list(answered(rng, documents, scores, correlation))
        return statistics.mean_interval(mine, seed, list(documents)), scores.mean()

    assert share_held(map(draw, range(500))) > 0.92


@pytest.mark.slow
@pytest.mark.parametrize(("count", "correlation", "scores"), CLUSTERED)
def test_pairs_over_few_documents_hold_what_they_claim(count, correlation, scores):
    """Two runs that differ by nothing on average, but by document."""
    rng = np.random.default_rng(count)
    ps = []

    def draw(seed):
        documents = questions(rng, count)
        before, after = (answered(rng, documents, scores, correlation) for _ in range(2))
        differences = list(after - before)
        ps.append(statistics.sign_flip_p(differences, seed, list(documents)))
        return statistics.paired_interval(differences, list(documents)), 0.0

    trials = 500
    assert share_held(map(draw, range(trials))) > 0.92
    assert np.mean(np.array(ps) < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)


@pytest.mark.slow
@pytest.mark.parametrize("count", [6, 7, 10, 20])
@pytest.mark.parametrize("shared", [0.0, 0.1])
def test_intervals_of_ratios_hold_what_they_claim(count, shared):
    """Times with log-normal noise, of requests of unequal length; erring on the safe side."""
    rng = np.random.default_rng(count)

    def draw(seed):
        lengths = np.exp(rng.normal(0, shared, count))
        first, second = (lengths * np.exp(rng.normal(0, 0.05, count)) for _ in range(2))
        return statistics.ratio_interval(list(first), list(1.1 * second), seed), 1.1

    assert share_held(map(draw, range(500))) > 0.94
