import itertools
import math

import numpy as np
import pytest
from scipy.stats import bootstrap, norm, t, ttest_1samp

from longctx import paired, statistics
from tests.saved_runs import full_results

Z2 = 1.959963984540054**2


def test_sign_flips_are_counted_exactly():
    assert statistics.sign_flip_p([0.1, 0.2, 0.3], seed=0) == pytest.approx(2 / 8)
    assert statistics.sign_flip_p([0.1] * 5, seed=0) == pytest.approx(2 / 32)
    assert statistics.sign_flip_p([0.1] * 5 + [0.0] * 50, seed=0) == pytest.approx(2 / 32)
    assert statistics.sign_flip_p([0.0] * 9, seed=0) == 1
    assert statistics.sign_flip_p([0.0, 0.4], seed=0) == 1
    assert statistics.sign_flip_p([], seed=0) == 1
    values = np.random.default_rng(3).normal(0.2, 0.5, 9)
    means = [np.mean(values * signs) for signs in itertools.product((1, -1), repeat=9)]
    beyond = np.mean(np.abs(means) >= abs(values.mean()) - 1e-12)
    assert statistics.sign_flip_p(list(values), seed=0) == pytest.approx(beyond)


def test_many_differences_are_drawn_with_the_seed():
    values = list(np.random.default_rng(0).normal(0.1, 0.5, 60))
    p = statistics.sign_flip_p(values, seed=0)
    assert p == statistics.sign_flip_p(values, seed=0)
    t_like = statistics.sign_flip_p([-value for value in values], seed=1)
    assert p == pytest.approx(t_like, abs=0.02)
    assert 0 < statistics.sign_flip_p([0.3] * 40, seed=0) < 0.001


@pytest.mark.parametrize(
    ("gains", "losses", "p"),
    [(0, 0, 1), (1, 0, 1), (5, 5, 1), (1, 9, 22 / 1024), (9, 1, 22 / 1024), (0, 6, 2 / 64)],
)
def test_mcnemar_is_the_binomial_test_of_the_pairs_that_differ(gains, losses, p):
    assert statistics.mcnemar_p(gains, losses) == pytest.approx(p)


@pytest.mark.parametrize("count", [2, 3, 7, 20, 41])
def test_tangos_interval_agrees_with_mcnemar_at_no_difference(count):
    for gains in range(count + 1):
        for losses in range(count + 1 - gains):
            low, high = statistics.paired_proportion_interval(gains, losses, count)
            estimate = (gains - losses) / count
            assert -1 <= low <= estimate <= high <= 1
            assert high - low > 0.02
            mirrored = statistics.paired_proportion_interval(losses, gains, count)
            assert [-mirrored[1], -mirrored[0]] == pytest.approx([low, high], abs=1e-6)
            is_seen = gains + losses > 0 and (gains - losses) ** 2 > Z2 * (gains + losses)
            assert is_seen == (not low <= 0 <= high)


def test_tangos_interval_without_any_pair_that_differs():
    # There it can be written down: z² / (n + z²).
    for count in (2, 20, 503):
        bound = Z2 / (count + Z2)
        interval = statistics.paired_proportion_interval(0, 0, count)
        assert interval == pytest.approx([-bound, bound], abs=1e-6)
    assert statistics.paired_proportion_interval(1, 0, 1) is None


def test_equal_differences_have_an_interval_with_a_width():
    low, high = statistics.paired_interval([0.0] * 20)
    assert low == -high
    assert high == pytest.approx(1 - 0.025 ** (1 / 20))
    missed = 1 - 0.025 ** (1 / 10)
    expected = [0.25 * (1 - missed) - missed, 0.25 * (1 - missed) + missed]
    assert statistics.paired_interval([0.25] * 10) == pytest.approx(expected)
    # Equal but for rounding; and documents that all differ by the same.
    assert statistics.paired_interval([0.25, 0.85 - 0.6] * 5) == pytest.approx(expected)
    by_document = statistics.paired_interval([0.0, 0.5] * 10, sorted([*range(10)] * 2))
    assert by_document == pytest.approx(expected)
    assert statistics.paired_interval([0.5]) is None
    assert statistics.paired_interval([0.5, 0.7], ["a", "a"]) is None


def test_differences_of_independent_samples_have_a_t_interval():
    differences = [0.3, -0.1, 0.05, 0.0, 0.2, 0.12]
    expected = ttest_1samp(differences, 0).confidence_interval(0.95)
    for clusters in (None, [*"abcdef"], [None] * 6, ["a", None, None, "b", None, None]):
        assert statistics.paired_interval(differences, clusters) == pytest.approx([*expected])
    # Not beyond what a difference can be.
    low, high = statistics.paired_interval([-1.0, 1.0, 1.0])
    assert (low, high) == (-1, 1)


def test_differences_by_document_have_the_interval_of_cr2():
    """Bell and McCaffrey's variance and degrees of freedom, by their matrices."""
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(5), [1, 2, 4, 7, 9])
    differences = rng.normal(0.1, 0.05, 5)[documents] + rng.normal(0, 0.1, len(documents))
    n, ones = len(documents), np.ones(len(documents))
    residual_maker = np.eye(n) - np.outer(ones, ones) / n
    scores = []  # one for each document: the vector that gives its term of the mean's error
    for number in range(5):
        mine = documents == number
        values, vectors = np.linalg.eigh(residual_maker[np.ix_(mine, mine)])
        adjusted = vectors @ np.diag(values**-0.5) @ vectors.T @ residual_maker[mine]
        scores.append(ones[mine] @ adjusted / n)
    scores = np.array(scores)
    error = np.sqrt(((scores @ differences) ** 2).sum())
    eigenvalues = np.linalg.eigvalsh(scores @ scores.T)
    freedom = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert 2 < freedom < 4
    reach = t.ppf(0.975, freedom) * error
    shuffled = rng.permutation(n)
    found = statistics.paired_interval(list(differences[shuffled]), list(documents[shuffled]))
    assert found == pytest.approx([differences.mean() - reach, differences.mean() + reach])


def test_the_signs_of_a_documents_differences_flip_together():
    differences = [0.1, 0.2, 0.3, 0.1, 0.1, 0.1]
    documents = [*"aabbcc"]
    assert statistics.sign_flip_p(differences, 0, documents) == pytest.approx(2 / 8)
    assert statistics.sign_flip_p(differences, 0) == pytest.approx(2 / 64)
    # What cancels out within a document says nothing; nor does one document.
    assert statistics.sign_flip_p([0.5, -0.5, 0.2, 0.2], 0, [*"aabb"]) == 1
    assert statistics.sign_flip_p([0.5, 0.3], 0, [*"aa"]) == 1
    assert statistics.sign_flip_p(differences, 0, [None] * 6) == pytest.approx(2 / 64)


def test_rates_over_many_draws_are_near_what_they_claim():
    """Pairs of two runs that are exchangeable: false positives, and intervals that hold 0."""
    rng = np.random.default_rng(0)
    trials, count = 250, 12
    positives = held = 0
    for seed in range(trials):
        # METEOR-like: many zeros, some parts, some hits.
        pairs = rng.choice([0, 0, 0.1, 0.25, 0.6, 1.0], (count, 2)) * rng.uniform(
            0.8, 1, (count, 2)
        )
        differences = list(pairs[:, 1] - pairs[:, 0])
        positives += statistics.sign_flip_p(differences, seed) < 0.05
        low, high = statistics.paired_interval(differences)
        held += low <= 0 <= high
    spread = 3 * math.sqrt(0.05 * 0.95 / trials)
    assert 0.05 - spread < positives / trials < 0.05 + spread
    assert held / trials > 0.95 - spread


def test_rates_of_right_and_wrong_answers_too():
    rng = np.random.default_rng(1)
    trials, count = 400, 40
    positives = held = 0
    for _ in range(trials):
        pairs = rng.random((count, 2)) < 0.4
        gains = int((pairs[:, 1] & ~pairs[:, 0]).sum())
        losses = int((pairs[:, 0] & ~pairs[:, 1]).sum())
        positives += statistics.mcnemar_p(gains, losses) < 0.05
        low, high = statistics.paired_proportion_interval(gains, losses, count)
        held += low <= 0 <= high
    spread = 3 * math.sqrt(0.05 * 0.95 / trials)
    assert 0 < positives / trials < 0.05 + spread  # an exact test of counts errs on the safe side
    assert 0.95 - spread < held / trials < 1


def test_ratio_of_medians():
    reference = [1.0, 5.0, 2.0, 9.0, 4.0, 3.0]
    assert statistics.ratio_interval(reference, [2 * x for x in reference], 0) == [2, 2]
    # Five are too few for an interval of a median: all lie on one side of it in 1 of 16 cases.
    assert statistics.ratio_interval(reference[:5], reference[:5], 0) is None
    rng = np.random.default_rng(0)
    before = rng.uniform(90, 110, 40)
    low, high = statistics.ratio_interval(list(before), list(before * rng.uniform(1.1, 1.3, 40)), 0)
    assert 1.1 < low < 1.2 < high < 1.3
    # Tails as far out as those of a t interval.
    tail = norm.cdf(np.sqrt(8 / 7) * t.ppf(0.025, 7))
    before, after = before[:8], before[8:16]
    drawn = np.random.default_rng(7).integers(0, 8, (200_000, 8))
    ratios = np.median(after[drawn], axis=1) / np.median(before[drawn], axis=1)
    found = np.mean([statistics.ratio_interval(before, after, seed) for seed in range(40)], axis=0)
    for end, share in zip(found, (tail, 1 - tail), strict=True):
        near = np.quantile(ratios, [max(share - 0.002, 0), min(share + 0.002, 1)])
        assert near[0] <= end <= near[1]


def test_two_values_are_enough_for_a_mean_a_difference_and_a_test():
    assert statistics.mean([1.0, 3.0]) == 2
    reach = t.isf(0.025, 1) * 0.01
    assert statistics.paired_interval([0.01, 0.03]) == pytest.approx([0.02 - reach, 0.02 + reach])
    assert statistics.sign_flip_p([0.1, 0.2], seed=0) == pytest.approx(0.5)


def test_a_ratio_has_the_widened_percentile_bootstrap():
    reference, other = np.random.default_rng(0).lognormal(0, 0.3, (2, 12))
    tail = norm.cdf(math.sqrt(12 / 11) * t.ppf(0.025, 11))
    wanted = bootstrap(
        (reference, other),
        lambda first, second, axis=-1: np.median(second, axis=axis) / np.median(first, axis=axis),
        paired=True,
        n_resamples=2000,
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=np.random.default_rng(7),
    ).confidence_interval
    assert statistics.ratio_interval(reference, other, seed=7) == pytest.approx(list(wanted))
    assert statistics.ratio_interval(reference, other, seed=8) != pytest.approx(list(wanted))


def test_right_and_wrong_answers_are_told_apart_in_pairs():
    pairs = [(0, 1)] * 3 + [(1, 1)] * 4 + [(1, 0), (0, 0)]
    found = paired.difference("em", pairs, seed=0)
    assert found.interval == statistics.paired_proportion_interval(3, 1, 9)
    assert (found.p, found.test) == (statistics.mcnemar_p(3, 1), "McNemar")
    assert (found.reference, found.other) == (pytest.approx(5 / 9), pytest.approx(7 / 9))


def test_a_cost_of_0_has_no_ratio():
    first, second = (full_results([0.5] * 3) for _ in range(2))
    for row in first["rows"]:
        row["kv_cache_gb"] = 0.0
    alike = paired.cost_ratios(first, second, 512, 0)
    for row in second["rows"]:
        row["sample_ids"], row["samples"] = [], [row["samples"][0] | {"sample_id": "another"}]
    no_request_shared = paired.cost_ratios(first, second, 512, 0)
    for ratios in (alike, no_request_shared):
        assert [ratio.figure.key for ratio in ratios] == [
            "ttft_ms", "ms_per_token_decode", "latency_ms_total",
        ]  # fmt: skip


def test_each_length_is_compared_with_itself():
    first, second = (full_results([score] * 3, contexts=(512, 1024)) for score in (0.2, 0.4))
    for row in second["rows"]:
        if row["context_tokens"] == 1024:
            row["samples"][0]["meteor"] = 0.1
            row |= {"ttft_ms": 900.0, "kv_cache_gb": 1.0}
        row["samples"][0]["document_id"] = "one book"
    (short,), (long,) = (paired.score_differences(first, second, n, 0) for n in (512, 1024))
    assert (short.other, long.other) == (pytest.approx(0.4), pytest.approx(0.1))
    assert short.n_documents == 1  # which only the other run's results say
    short, long = (paired.cost_ratios(first, second, n, 0) for n in (512, 1024))
    shown = [(c.figure.name, c.figure.unit, c.figure.shown["compare"]) for c in short]
    assert shown == [
        ("TTFT", "ms", 1),
        ("decode", "ms/token", 2),
        ("latency", "ms", 1),
        ("KV cache", "GB", 4),
    ]
    assert [cost.other for cost in short] == [101, 5, 301, 0.5]
    assert [cost.other for cost in long] == [900, 5, 301, 1]


def test_intervals_over_questions_about_one_book_cover_what_they_claim():
    """Ten questions about each of 12 books, which vary from book to book: 93 to 97% cover."""
    rng = np.random.default_rng(0)
    trials, books = 600, 12
    documents = [str(book) for book in range(books) for _ in range(10)]
    covered = np.zeros(4)
    for seed in range(trials):
        right = list((rng.random(120) < rng.beta(2, 2, books).repeat(10)).astype(float))
        change = list(rng.normal(-0.1, 0.1, books).repeat(10) + rng.normal(0, 0.15, 120))
        intervals = (
            (0.5, statistics.mean_interval(right, seed, documents)),
            (-0.1, statistics.paired_interval(change, documents)),
            (0.5, statistics.mean_interval(right, seed)),
            (-0.1, statistics.paired_interval(change)),
        )
        covered += [low <= truth <= high for truth, (low, high) in intervals]
    of_means, of_differences, *as_if_independent = covered / trials
    assert 0.93 < of_means < 0.97
    assert 0.93 < of_differences < 0.97
    assert max(as_if_independent) < 0.8
