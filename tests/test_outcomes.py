"""What became of the samples that were asked for, counted, shown and told to the shell."""

import json
import re

import pytest
from rich.console import Console

from longctx import load_results, outcomes, results, tables
from longctx.report import flat, page
from longctx.run_files import RunFiles
from tests.saved_runs import full_results, write
from tests.test_rows import requests, scored, summary_of


def failed(first, size=1, *, oom=False):
    identity = {"first_sample": first, "batch_size": size, "request": first // size}
    return results.failed_row(identity, ValueError("no"), oom=oom)


def good(first, scores):
    (row,) = requests([len(scores)])
    return row | {
        "first_sample": first,
        "samples": [scored(first + n, em) for n, em in enumerate(scores)],
    }


THIRTY_WORST_FAIL = [good(0, [1.0, 0.2] * 5), *(failed(n) for n in range(10, 40))]


def parts(summary):
    return [summary[key] for key in ("n_scored", *outcomes.PARTS)]


@pytest.mark.parametrize(
    ("rows", "n_asked", "n_left_out", "expected"),
    [
        # scored, failed, out of memory, not run, left out
        (THIRTY_WORST_FAIL, 40, 0, [10, 30, 0, 0, 0]),
        ([], 5, 2, [0, 0, 0, 3, 2]),
        ([good(0, [1, 1]), failed(2, 2, oom=True)], 9, 1, [2, 0, 2, 4, 1]),
        # Once more in smaller batches: scored, failed and out of memory for good.
        ([failed(0, 4, oom=True), good(0, [1, 1]), failed(2), failed(3, oom=True)], 4, 0,
         [2, 1, 1, 0, 0]),
        ([good(0, [1, 1]), good(2, [1])], 3, 0, [3, 0, 0, 0, 0]),
    ],
)  # fmt: skip
def test_counts_are_of_samples_and_add_up(rows, n_asked, n_left_out, expected):
    summary = summary_of(rows, n_asked, n_left_out=n_left_out)
    assert parts(summary) == expected
    assert sum(expected) == summary["n_asked"] == n_asked
    assert summary["total_count"] == expected[0]
    # The old keys count requests.
    assert summary["n_requests"] == len(rows)
    assert summary["n_failed"] == sum(not row["success"] for row in rows)


def test_a_score_stands_beside_the_one_with_failures_as_0():
    summary = summary_of(THIRTY_WORST_FAIL, 40)
    assert summary["em"] == pytest.approx(0.6)
    assert summary["em_failures_as_0"] == pytest.approx(0.15)
    whole = summary_of([good(0, [1.0, 0.2])], 2)
    assert whole["em_failures_as_0"] == whole["em"]
    assert summary_of([failed(0)], 1)["em_failures_as_0"] == 0
    # Memory ran out before the others were tried; what was left out is no failure.
    rest = summary_of([good(0, [1.0]), failed(1, oom=True)], 5, n_left_out=1)
    assert rest["em_failures_as_0"] == pytest.approx(1 / 4)
    # An interrupted run has not come to the others.
    assert summary_of([good(0, [1.0])], 5)["em_failures_as_0"] == 1
    # Nothing can be scored: weights are random, or there is no reference.
    assert summary_of([failed(0)], 1, has_quality=False)["em_failures_as_0"] is None
    assert summary_of([good(0, [None]), failed(1)], 2)["em_failures_as_0"] is None


def printed(table):
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return " ".join(console.export_text().split())


def run_with(**summary):
    return full_results([0.6] * 10, summary=summary)


PARTIAL = {
    "n_asked": 40, "n_scored": 10, "n_failed_samples": 28, "n_oom_samples": 0, "n_not_run": 0,
    "n_left_out": 2, "meteor_failures_as_0": 0.158,
}  # fmt: skip
WHOLE = dict.fromkeys(outcomes.PARTS, 0) | {"n_asked": 10, "meteor_failures_as_0": 0.6}
WHY = "512 tokens: 10 of 40 samples scored; 28 failed, 2 left out (TRUNCATE=skip)"


def test_every_table_marks_what_is_partial_and_says_why(tmp_path):
    run = run_with(**PARTIAL)
    text = printed(tables.table_of([run]))
    assert "10 of 40 ‡" in text
    assert "0.600 [0.100, 0.900] ‡" in text
    assert "meteor, failures as 0" in text
    assert "0.158" in text
    assert f"‡ {WHY}" in text
    both = printed(tables.table_of([run, run_with(**WHOLE)], ["first", "second"]))
    assert f"‡ first, {WHY}" in both
    assert both.count("‡ first") == 1
    assert "‡ second" not in both
    document = flat.markdown([(tmp_path, run)])
    assert "| 10 of 40 ‡ |" in document
    assert "meteor_failures_as_0" in document
    assert WHY in document
    assert "28 failed, 2 left out (TRUNCATE=skip)" in flat.csv_text([(tmp_path, run)])


def test_the_page_knows_what_is_partial(tmp_path):
    runs = [(tmp_path / name, run_with(**parts)) for name, parts in
            (("a", PARTIAL), ("b", WHOLE), ("c", {}))]  # fmt: skip
    text = page.document(runs, samples=1)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert [(row["samples"], row["asked"], row["missing"]) for row in data["rows"]] == [
        ("10 of 40 ‡", 40, "28 failed, 2 left out (TRUNCATE=skip)"), ("10", 10, ""), ("10", 10, ""),
    ]  # fmt: skip
    assert data["rows"][0]["figures"]["meteor_failures_as_0"] == 0.158


def test_a_whole_run_has_one_more_line_and_no_marks(tmp_path):
    text = printed(tables.table_of([run_with(**WHOLE)]))
    assert "‡" not in text
    assert "failures as 0" not in text
    assert "│ samples │ 10 │" in text


def test_a_length_after_the_one_that_ran_out_of_memory_is_no_row_of_dashes():
    summary = {"total_count": 0, "skipped_after_oom_at": 256, "meteor": None, "meteor_ci95": None}
    counts = dict.fromkeys(outcomes.PARTS, 0) | {"n_asked": 10, "n_not_run": 10}
    text = printed(tables.table_of([run_with(**summary, **counts)]))
    assert "out of memory" in text
    assert "10 not run" in text


def test_older_results_are_counted_from_their_rows(tmp_path):
    old = full_results([0.6, 0.2, None], n_samples=4)
    for number, row in enumerate(old["rows"]):
        row |= {"batch_size": 1, "first_sample": number}
    (path,) = write(tmp_path, a=old)
    (summary,) = load_results.read(path)["ctx_summaries"]
    assert parts(summary) == [2, 0, 1, 1, 0]
    assert summary["meteor_failures_as_0"] == pytest.approx(0.2)
    # Nonsense leaves the summary as it was.
    old["rows"][2]["batch_size"] = 10**15
    path.write_text(json.dumps(old))
    assert not outcomes.is_partial(load_results.read(path)["ctx_summaries"][0])


@pytest.mark.parametrize(
    ("requests", "failures", "oom", "has_failed"),
    [(4, 0, 0, False), (4, 3, 0, False), (4, 4, 0, True), (4, 4, 1, True), (4, 4, 4, False),
     (0, 0, 0, False)],
)  # fmt: skip
def test_a_run_of_failures_is_not_done_and_one_out_of_memory_is(
    tmp_path, capsys, requests, failures, oom, has_failed
):
    summary = {"n_requests": requests, "n_failed": failures, "n_oom": oom}
    assert outcomes.has_failed(summary) is has_failed
    rows = [{"error": "no", "oom": False}]
    assert outcomes.failure(summary, rows) == (
        f"{outcomes.failures(summary)}; the first: no" if has_failed else None
    )
    (path,) = write(tmp_path, a=full_results([0.5], fingerprint="f") | {"summary": summary})
    assert RunFiles.finished(tmp_path, "f") == (None if has_failed else path)
    told = capsys.readouterr().err
    assert ("requests failed" in told) is (failures > 0)
    assert ("run again" in told) is has_failed
