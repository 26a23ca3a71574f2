"""What became of the samples that a context length was asked for, and which requests are timed.

Counts are of samples, not of requests, and add up: asked = scored + failed + out of memory +
left out (TRUNCATE=skip) + not run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

PARTS = {
    "n_failed_samples": "failed",
    "n_oom_samples": "out of memory",
    "n_not_run": "not run",
    "n_left_out": "left out (TRUNCATE=skip)",
}
COUNTS = ("n_asked", "n_scored", *PARTS)
AS_0 = "_failures_as_0"
_MOST_SAMPLES = 1_000_000
MARK = "\N{DOUBLE DAGGER}"

Row = Mapping[str, Any]
Summary = Mapping[str, Any]


def counts(rows: Sequence[Row], n_asked: int, n_left_out: int) -> dict[str, int]:
    """The counts of a context length.

    A sample that ran out of memory and was answered in a smaller batch is scored; one that failed
    in the end has failed.
    """

    def samples_of(is_kind: Callable[[Row], Any]) -> set[Any]:
        return {sample for row in rows if is_kind(row) for sample in _sample_numbers(row)}

    scored = samples_of(lambda row: row["success"])
    failed = samples_of(lambda row: not row["success"] and not row.get("oom")) - scored
    out_of_memory = samples_of(lambda row: not row["success"]) - scored - failed
    tried = len(scored) + len(failed) + len(out_of_memory)
    return {
        "n_asked": n_asked,
        "n_scored": len(scored),
        "n_failed_samples": len(failed),
        "n_oom_samples": len(out_of_memory),
        "n_not_run": n_asked - n_left_out - tried,
        "n_left_out": n_left_out,
    }


def _sample_numbers(row: Row) -> Iterator[Any]:
    """What tells samples of one context length apart; old rows have no numbers."""
    size = len(row["samples"]) if row["success"] else row.get("batch_size", 1)
    for number in range(size):
        is_known = "first_sample" in row
        yield row["first_sample"] + number if is_known else (row.get("request"), number)


def n_failures(summary: Summary) -> int:
    """Samples without an answer that the run could not give.

    Those that nobody tried since memory had run out are among them; those that TRUNCATE=skip left
    out, or that an interrupted run has not come to, are not. 0 where nobody knows.
    """
    failed, oom, not_run = (
        summary.get(key, 0) for key in ("n_failed_samples", "n_oom_samples", "n_not_run")
    )
    ran_out = oom or summary.get("skipped_after_oom_at")
    return int(failed + oom + (not_run if ran_out else 0))


def mean_with_failures_as_0(scores: Sequence[float], failures: int) -> float | None:
    """Mean score where each failure counts as 0; None of nothing."""
    count = len(scores) + failures
    return sum(scores) / count if count else None


def is_partial(summary: Summary | None) -> bool:
    """Whether fewer samples were scored than asked for; False where nobody knows."""
    return summary is not None and summary.get("n_asked", 0) > summary["total_count"]


def samples(summary: Summary) -> str:
    """How many samples were scored, and of how many where that differs."""
    scored = f"{summary['total_count']:,}"
    return f"{scored} of {summary['n_asked']:,} {MARK}" if is_partial(summary) else scored


def missing(summary: Summary) -> str:
    """Which samples are missing, in words; empty where none is."""
    parts = ((summary.get(key), words) for key, words in PARTS.items())
    return ", ".join(f"{count:,} {words}" for count, words in parts if count)


def caption(summary: Summary, label: str = "") -> str:
    """The line that explains the mark of a partial cell."""
    length = f"{summary['context_tokens']:,} tokens"
    about = f"{label}, {length}" if label else length
    return (
        f"{MARK} {about}: {summary['total_count']:,} of {summary['n_asked']:,} samples scored; "
        f"{missing(summary)}"
    )


def failures(summary: Summary) -> str:
    """The failed requests of a run's `summary`, in words; empty where there are none."""
    failed, oom = summary.get("n_failed", 0), summary.get("n_oom", 0)
    if not failed:
        return ""
    words = f"{failed:,} of {summary['n_requests']:,} requests failed"
    return f"{words}, {oom:,} of them out of memory" if oom else words


def has_failed(summary: Summary) -> bool:
    """Whether nothing came of a run, by its `summary`: every request failed.

    Running out of memory is a result: a run that did nothing else has not failed.
    """
    failed, oom = summary.get("n_failed", 0), summary.get("n_oom", 0)
    return bool(failed == summary.get("n_requests") and failed > oom)


def failure(summary: Summary, rows: Sequence[Row]) -> str | None:
    """Why nothing came of a run, in a line; None where something did."""
    if not has_failed(summary):
        return None
    first = next(row["error"] for row in rows if not row["oom"])
    return f"{failures(summary)}; the first: {first}"


def timed(rows: Sequence[Row]) -> list[Row]:
    """The requests that figures of time, throughput and memory are of: those of the largest batch.

    Only requests that succeeded. A smaller one, such as the last of a context length, would make
    percentiles that are of no request.
    """
    good = [row for row in rows if row["success"]]
    largest = max((row.get("batch_size", 1) for row in good), default=None)
    return [row for row in good if row.get("batch_size", 1) == largest]


def complete(full: dict[str, Any]) -> None:
    """Add the counts, and scores with failures as 0, to results of a version that had none."""
    meta = full["run_meta"]
    for summary in full["ctx_summaries"]:
        n_asked = meta.get("n_samples")
        if "n_asked" in summary or not isinstance(n_asked, int):
            continue
        rows = [row for row in full["rows"] if row["context_tokens"] == summary["context_tokens"]]
        if not all(map(_is_plausible, rows)):
            continue
        found = counts(rows, n_asked, 0)
        if found["n_scored"] != summary["total_count"] or found["n_not_run"] < 0:
            continue  # its rows are not the whole story
        if meta["variables"].get("TRUNCATE") == "skip" and not found["n_oom_samples"]:
            found |= {"n_left_out": found["n_not_run"], "n_not_run": 0}
        summary.update(found)
        samples = [sample for row in rows if row["success"] for sample in row["samples"]]
        for name in meta["score_names"]:
            scores = [sample[name] for sample in samples if sample.get(name) is not None]
            if scores:
                summary[name + AS_0] = mean_with_failures_as_0(scores, n_failures(summary))


def _is_plausible(row: Row) -> bool:
    """Whether a row of a file says where its samples stand; it may say anything."""
    return max(row.get("first_sample", 0), row.get("batch_size", 1)) < _MOST_SAMPLES
