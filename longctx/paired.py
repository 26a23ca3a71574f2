"""Two runs over the same samples: what the scores differ by, and what the costs are times of."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from statistics import fmean
from typing import Any

from longctx import figures, statistics, tables
from longctx.figures import Figure

SIGNIFICANCE = 0.05

Samples = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ScoreDifference:
    """Mean score of another run less that of the reference, over `n` shared samples.

    n_documents: what they are about, where several are about one document; else None.
    p_of: gives the test's p, which takes long and of many differences is not asked for.
    """

    name: str
    n: int
    n_documents: int | None
    reference: float
    other: float
    interval: list[float] | None
    p_of: Callable[[], float] = field(compare=False)
    test: str

    @cached_property
    def p(self) -> float:
        """Of the test."""
        return self.p_of()

    @property
    def seen(self) -> int:
        """-1 for a loss that interval and test both show, 1 for such a gain, else 0."""
        low, high = self.interval or (0, 0)
        return 0 if low <= 0 <= high or self.p >= SIGNIFICANCE else 1 if low > 0 else -1

    @property
    def excluded_loss(self) -> float | None:
        """The loss beyond which the interval has none, rounded up; None without an interval."""
        # Rounded up: what is said to be excluded must be.
        return None if self.interval is None else math.ceil(max(-self.interval[0], 0) * 1e3) / 1e3

    def sentence(self) -> str:
        """What the interval and the test together say, in plain words. Higher is better."""
        means = f"{self.reference:.3f} -> {self.other:.3f}, n = {self.n}"
        if self.n_documents is not None:
            means += f" about {self.n_documents} document{'s' * (self.n_documents != 1)}"
        if self.interval is None:
            one = "one sample" if self.n == 1 else "one document"
            return f"{means}: {one} says nothing about a difference"
        low, high = self.interval
        size, lowest, highest = (abs(x) for x in (self.other - self.reference, low, high))
        p = f"{self.test} p {'< 0.001' if self.p < 0.001 else f'= {self.p:.3f}'}"
        leaves_out_zero = not low <= 0 <= high
        if leaves_out_zero and self.p < SIGNIFICANCE:
            word = "gain" if low > 0 else "loss"
            near, far = sorted((lowest, highest))
            return f"a {word} of {size:.3f} [{near:.3f}, {far:.3f}] ({means}, {p})"
        numbers = f"{self.other - self.reference:+.3f} [{low:+.3f}, {high:+.3f}] ({means}, {p})"
        if leaves_out_zero or self.p < SIGNIFICANCE:
            return f"not settled, interval and test disagree: {numbers}"
        return f"no difference can be seen, {self.exclusion()}: {numbers}"

    def exclusion(self) -> str:
        """Which loss is excluded, in plain words; of a difference that has an interval."""
        bound = self.excluded_loss
        if bound is None or bound >= self.reference:
            return "not even the loss of all of it can be excluded"
        if not bound:
            return "any loss can be excluded"
        return f"a loss of more than {bound:.3f} can be excluded"


@dataclass(frozen=True)
class CostRatio:
    """Median cost of another run over that of the reference.

    decimals: of the two medians.
    requests: how many both runs made; 0 where their batches differ.

    A difference is claimed of memory alone. Times scatter from run to run, by nobody knows how much
    where there is one run of each: they show what these two runs differ by, not their settings.
    """

    figure: Figure
    decimals: int
    reference: float
    other: float
    interval: list[float] | None
    requests: int

    def sentence(self) -> str:
        """The ratio in plain words."""
        ratio = self.other / self.reference
        both = (tables.number_text(value, self.decimals) for value in (self.reference, self.other))
        values = f"{' -> '.join(both)} {self.figure.unit}"
        if self.interval is None:
            few = f"{self.requests} request{'s' * (self.requests != 1)}: too few for an interval"
            why = few if self.requests else "no request in common, so no interval"
            return f"{ratio:.2f} times ({values}, {why})"
        low, high = self.interval
        is_time = self.figure.group != figures.MEMORY
        numbers = f"{ratio:.2f} times"
        if is_time or f"{low:.2f}" != f"{high:.2f}":
            numbers += f" [{low:.2f}, {high:.2f}]"
        numbers += f" ({values}{', interval within one run each' if is_time else ''})"
        if low <= 1 <= high:
            return f"no difference can be seen: {numbers}"
        if is_time:
            return numbers
        change = abs(ratio - 1)
        percent = f"{change:.1%} " if change < 0.1 else f"{change:.0%} " if change < 1 else ""
        return f"{percent}{'more' if ratio > 1 else 'less'}: {numbers}"


def samples_at(run: dict[str, Any], context_tokens: int) -> dict[str, dict[str, Any]]:
    """Samples of the requests that succeeded at a context length, by their ids."""
    return {
        sample["sample_id"]: sample
        for row in _good_rows(run, context_tokens)
        for sample in row["samples"]
    }


def identity(sample: dict[str, Any]) -> tuple[Any, ...]:
    """What is known of a sample apart from its prompt and answer; tokens are the model's."""
    return (sample["sample_id"], *sample["references"], sample.get("document_tokens"))


def shared_samples(reference: dict[str, Any], other: dict[str, Any]) -> dict[int, list[str]]:
    """Context length -> ids of the samples that both runs answered, where there are any."""
    shared = {}
    for context_tokens in sorted({row["context_tokens"] for row in reference["rows"]}):
        answered = samples_at(other, context_tokens)
        ids = [key for key in samples_at(reference, context_tokens) if key in answered]
        if ids:
            shared[context_tokens] = ids
    return shared


def score_differences(
    reference: dict[str, Any], other: dict[str, Any], context_tokens: int, seed: int
) -> list[ScoreDifference]:
    """For each score that both runs have, over the samples that both answered."""
    first, second = (samples_at(run, context_tokens) for run in (reference, other))
    differences = []
    for name in reference["run_meta"]["score_names"]:
        pairs = score_pairs(first, second, name)
        if pairs:
            documents = [document_of(first[key], second[key]) for key in pairs]
            differences.append(difference(name, list(pairs.values()), seed, documents))
    return differences


def pooled_difference(
    sides: Iterable[tuple[Samples, Samples]], name: str, seed: int
) -> ScoreDifference | None:
    """Of a score over several context lengths; None where no sample has it in both runs.

    sides: of each length both runs' `samples_at`. Each sample counts once, by its mean over the
    lengths: its prompts are cut out of one text, so they are not independent.
    """
    scores: dict[str, list[tuple[float, float]]] = {}
    documents: dict[str, str | None] = {}
    for first, second in sides:
        for key, both in score_pairs(first, second, name).items():
            scores.setdefault(key, []).append(both)
            documents.setdefault(key, document_of(first[key], second[key]))
    means = [(fmean(b for b, _ in mine), fmean(a for _, a in mine)) for mine in scores.values()]
    return difference(name, means, seed, list(documents.values())) if means else None


def data_names(runs: Sequence[dict[str, Any]]) -> dict[tuple[int, int], str]:
    """(place of a run, context length) -> a name that is the same where the samples are the same.

    The fingerprint of the data, or that of another run of which all that is known of the samples is
    the same: older versions made other fingerprints.
    """
    first_with: dict[tuple[Any, ...], str] = {}
    names = {}
    for number, run in enumerate(runs):
        fingerprint = run["run_meta"]["data_fingerprint"]
        for summary in run["ctx_summaries"]:
            context_tokens = summary["context_tokens"]
            known = tuple(map(identity, samples_at(run, context_tokens).values()))
            names[number, context_tokens] = (
                first_with.setdefault(known, fingerprint) if known else fingerprint
            )
    return names


def score_pairs(
    first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]], name: str
) -> dict[str, tuple[float, float]]:
    """A score in two runs' `samples_at`, by the ids of the samples that have it in both."""
    return {
        key: (first[key][name], second[key][name])
        for key in first
        if key in second and first[key].get(name) is not None and second[key].get(name) is not None
    }


def document_of(*samples: dict[str, Any]) -> str | None:
    """The document that the results of one sample are about; None where none of them names it."""
    return next((name for sample in samples if (name := sample.get("document_id"))), None)


def difference(
    name: str,
    pairs: Sequence[tuple[float, float]],
    seed: int,
    documents: Sequence[str | None] | None = None,
) -> ScoreDifference:
    """Of the scores of a reference and another run, a pair for each of one or more samples.

    documents: what each sample is about. Where several are about one, they are taken together: the
    t interval over documents, and a permutation test that flips the signs of a document's
    differences at once. Else scores that are all 0 or 1 have Tango's interval and McNemar's exact
    test, others the t interval and a permutation test.
    """
    count = len(pairs)
    known = [document for document in documents or () if document is not None]
    n_documents = len(set(known)) + count - len(known)
    is_clustered = n_documents < count
    if not is_clustered and {score for pair in pairs for score in pair} <= {0, 1}:
        gains, losses = (sum(pair == wanted for pair in pairs) for wanted in ((0, 1), (1, 0)))
        interval = statistics.paired_proportion_interval(gains, losses, count)
        p_of, test = partial(statistics.mcnemar_p, gains, losses), "McNemar"
    else:
        differences = [other - reference for reference, other in pairs]
        interval = statistics.paired_interval(differences, documents)
        p_of = partial(statistics.sign_flip_p, differences, seed, documents)
        test = "permutation"
    before, after = (sum(side) / count for side in zip(*pairs, strict=True))
    documents_known = n_documents if is_clustered else None
    return ScoreDifference(name, count, documents_known, before, after, interval, p_of, test)


def cost_ratios(
    reference: dict[str, Any],
    other: dict[str, Any],
    context_tokens: int,
    seed: int,
    place: str = figures.COMPARE,
) -> list[CostRatio]:
    """For each figure shown in `place` that both runs measured.

    Over the requests that both answered, with an interval over them where they are enough; runs in
    other batches have no requests in common, so theirs is over all requests, without an interval.
    """
    first, second = (
        {_request(row): row for row in _good_rows(run, context_tokens)}
        for run in (reference, other)
    )
    shared = [key for key in first if key in second]
    ratios = []
    for figure in figures.shown(place):
        key = figure.key
        # A row with one new token has no decode step.
        pairs = [
            (before, after)
            for request in shared
            if (before := first[request].get(key)) and (after := second[request].get(key))
        ]
        sides = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        interval = statistics.ratio_interval(*sides, seed)
        if not shared:
            # As above: a cost of 0 is none that anything could be a multiple of.
            sides = (
                list(filter(None, figure.values(first.values()))),
                list(filter(None, figure.values(second.values()))),
            )
        medians = [statistics.percentile(side, 50) for side in sides]
        if medians[0] is not None and medians[1] is not None:
            both = medians[0], medians[1]
            decimals = figure.shown[place]
            ratios.append(CostRatio(figure, decimals, *both, interval, len(pairs)))
    return ratios


def _request(row: dict[str, Any]) -> tuple[str, ...]:
    """What a request was about; the same in two runs when they made the same batches."""
    return tuple(sample["sample_id"] for sample in row["samples"])


def _good_rows(run: dict[str, Any], context_tokens: int) -> list[dict[str, Any]]:
    rows = (row for row in run["rows"] if row["context_tokens"] == context_tokens)
    return [row for row in rows if row["success"]]
