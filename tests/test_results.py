import json

import pytest

from longctx import results, statistics
from longctx.run_files import RunFiles
from tests.saved_runs import journal_meta as meta
from tests.saved_runs import journal_row


def test_a_row_is_on_disk_at_once_and_the_journal_goes_at_the_end(tmp_path):
    files = RunFiles.start(tmp_path, meta())
    files.add({"context_tokens": 8, "request": 0, "success": True})
    lines = files.journal.read_text().splitlines()
    assert [json.loads(line) for line in lines][1]["request"] == 0
    files.write_summaries([{"context_tokens": 8}])
    files.finish(files.rows, [{"context_tokens": 8}], {"n": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.jsonl", "run_full.json"]
    full = json.loads(files.full_path.read_text())
    assert set(full) == {"run_meta", "ctx_summaries", "rows", "summary"}


def test_two_runs_in_one_second_have_two_names(tmp_path):
    first = RunFiles.start(tmp_path, meta())
    second = RunFiles.start(tmp_path, meta())
    assert first.journal != second.journal
    assert second.meta["run_id"] == "run-2"
    first.finish([], [], {})
    assert RunFiles.start(tmp_path, meta()).meta["run_id"] == "run-3"


@pytest.mark.parametrize("tail", ["", '{"request": 2, "succ', "\x00\x00", "not json\n"])
def test_resume_finds_whole_rows_and_sets_a_torn_one_aside(tmp_path, tail):
    files = RunFiles.start(tmp_path, meta())
    for request in range(2):
        files.add(journal_row(request, text="line\u2028separator \ud800"))
    with open(files.journal, "a") as journal:
        journal.write(tail)
    assert RunFiles.unfinished(tmp_path, "other") is None
    assert RunFiles.unfinished(tmp_path, "f") is None  # the first one is still busy with it
    files.release()
    found = RunFiles.unfinished(tmp_path, "f")
    assert [row["request"] for row in found.rows] == [0, 1]
    aside = found.journal.with_suffix(".corrupt")
    assert (aside.read_text() if tail else "") == tail
    found.add(journal_row(2))
    found.release()
    again = RunFiles.unfinished(tmp_path, "f")
    assert [row["request"] for row in again.rows] == [0, 1, 2]


def test_what_is_not_a_number_becomes_null(tmp_path):
    files = RunFiles.start(tmp_path, meta())
    files.add({"value": float("nan"), "list": [float("inf"), 1 / 3]})
    row = json.loads(files.journal.read_text().splitlines()[1])
    assert row == {"value": None, "list": [None, 0.333333]}
    # The same in memory: a resumed run computes from what was read, an unbroken one from this.
    assert files.rows == [row]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    results.write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        results.write_whole(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "model", ["a/b", "../../etc/passwd", "/abs/path", "..", "a b\n;rm -rf *", "日本"]
)
def test_run_ids_stay_inside_their_folder(tmp_path, model):
    name = results.run_id(model, "sdpa", 1, 1, "none", "none")
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert not name.startswith(".")
    assert "\n" not in name


def test_percentiles_and_intervals():
    assert statistics.percentile([1, 2, 3, 4], 50) == 2.5
    assert statistics.percentile([], 50) is None
    assert statistics.mean_interval([0.5], seed=0) is None
    assert statistics.mean_interval([0.5, 0.5], seed=0) == pytest.approx([0.079, 0.921], abs=1e-3)
    low, high = statistics.mean_interval([0.0] * 50 + [1.0] * 50, seed=0)
    assert 0.38 < low < 0.44 < 0.56 < high < 0.62


def test_intervals_of_proportions_are_exact_and_never_without_width():
    # Clopper and Pearson by the quantiles of the beta distribution.
    from scipy.stats import beta

    for right, count in [(0, 20), (20, 20), (7, 20), (1, 2)]:
        low, high = statistics.mean_interval([1.0] * right + [0.0] * (count - right), seed=0)
        assert low == pytest.approx(beta.ppf(0.025, right, count - right + 1) if right else 0)
        wrong = count - right
        assert high == pytest.approx(beta.ppf(0.975, right + 1, wrong) if wrong else 1)
    low, high = statistics.mean_interval([0.3] * 20, seed=0)
    assert low < 0.3 < high
    # Between the exact intervals of twenty zeros and of twenty ones.
    assert high - low == pytest.approx(beta.ppf(0.975, 1, 20))


def sample(em, kind, evidence_kept=None):
    return {
        "em": em, "kind": kind, "evidence_kept": evidence_kept, "answered": True,
        "prompt_tokens": 8, "dropped_tokens": 0,
    }  # fmt: skip


def summarized(samples, **options):
    row = dict.fromkeys(
        ("latency_ms_total", "ttft_ms", "prefill_ms", "compress_ms", "decode_ms", "ms_per_token",
         "tok_per_s", "ms_per_token_decode", "tok_per_s_decode", "kv_cache_gb", "peak_gpu_mem_gb",
         "peak_prefill_gb", "peak_decode_gb", "peak_reserved_gb"), 1.0
    )  # fmt: skip
    row |= dict.fromkeys(("kernel_prefill", "kernel_decode", "decode_mode", "prefill_mode"), "")
    row |= {"success": True, "samples": samples}
    return results.context_summary({}, [row], ["em"], seed=0, **options)


@pytest.mark.parametrize(
    ("right", "told"),
    [(5, False), (9, False), (2, False), (1, True), (10, True), (0, True), (20, True)],
)
def test_a_score_is_told_from_chance_by_its_interval(right, told):
    samples = [sample(float(n < right), "x") for n in range(20)]
    summary = summarized(samples, chance=0.25)
    low, high = summary["em_ci95"]
    assert summary["chance"] == 0.25
    assert summary["em_told_from_chance"] is told
    assert told is (not low <= 0.25 <= high)


def test_groups_and_evidence():
    samples = [
        sample(1.0, "b", True),
        sample(0.0, "a", False),
        sample(None, "b"),
        sample(1.0, None),
    ]
    summary = summarized(samples, groups=["kind", "evidence_kept"])
    assert list(summary["em_by_kind"]) == ["a", "b"]
    assert summary["em_by_kind"]["b"] == {"n": 2, "em": 1.0, "em_ci95": None}
    assert {key: group["em"] for key, group in summary["em_by_evidence_kept"].items()} == {
        "false": 0, "true": 1,
    }  # fmt: skip
    assert summary["evidence_kept_pct"] == 50
    nothing = summarized([], groups=["kind"], chance=0.25)
    assert nothing["em_by_kind"] == {}
    assert nothing["em_told_from_chance"] is nothing["evidence_kept_pct"] is None
