import json

import numpy as np
import pytest
from scipy.stats import beta

from longctx import results, run_metadata, statistics
from longctx.run_files import RunFiles
from longctx.settings import Settings
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
    name = run_metadata.run_id(Settings(dataset_id=model), model, 1)
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert not name.startswith(".")
    assert "\n" not in name


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"keep_ratio": 0.5}, "m_flash2_N7_B1_KVnone_Qnone"),
        ({"kv_mode": "l2"}, "m_flash2_N7_B1_KVl2_Qnone"),
        (
            {"kv_mode": "l2", "keep_ratio": 0.5, "kv_scope": "context", "kv_quant": "int8"},
            "m_flash2_N7_B1_KVl2-0.5-context-int8_Qnone",
        ),
        ({"kv_mode": "l2", "keep_tokens": 64}, "m_flash2_N7_B1_KVl2-64tokens_Qnone"),
        ({"dataset_id": "a/LongBench-v2"}, "m_flash2_LongBench-v2_N7_B1_KVnone_Qnone"),
        ({"dataset_id": "some/questions.jsonl"}, "m_flash2_questions_N7_B1_KVnone_Qnone"),
    ],
)
def test_names_of_runs_tell_runs_apart(changes, name):
    assert run_metadata.run_id(Settings(**changes), "m", 7).rpartition("_")[0] == name


def test_percentiles_and_intervals():
    assert statistics.percentile([1, 2, 3, 4], 50) == 2.5
    assert statistics.percentile([], 50) is None
    assert statistics.mean_interval([0.5], seed=0) is None
    low, high = statistics.mean_interval([0.5, 0.5], seed=0)
    assert 0.1 < low < 0.25 < 0.75 < high < 0.9
    low, high = statistics.mean_interval([0.0] * 50 + [1.0] * 50, seed=0)
    assert 0.38 < low < 0.44 < 0.56 < high < 0.62


def test_intervals_of_proportions_are_those_of_jeffreys_and_never_without_width():
    for right, count in [(0, 20), (20, 20), (7, 20), (1, 2)]:
        low, high = statistics.mean_interval([1.0] * right + [0.0] * (count - right), seed=0)
        ends = beta.ppf([0.025, 0.975], right + 0.5, count - right + 0.5)
        assert low == (pytest.approx(ends[0]) if right else 0)
        assert high == (pytest.approx(ends[1]) if right < count else 1)
    low, high = statistics.mean_interval([0.3] * 20, seed=0)
    assert low < 0.3 < high


def test_intervals_of_other_scores_are_of_the_same_kind():
    # Documents that are all right or all wrong count as one sample each, whatever their number.
    scores, documents = [1.0] * 21 + [0.0] * 39, [*map(str, sorted([*range(20)] * 3))]
    found = [statistics.mean_interval(scores, seed, documents) for seed in range(30)]
    expected = statistics.mean_interval([1.0] * 7 + [0.0] * 13, 0)
    assert np.mean(found, axis=0) == pytest.approx(expected, abs=0.004)
    assert found[0] == statistics.mean_interval(scores, 0, documents) != found[1]
    assert statistics.mean_interval([1.0, 0.0], 0, ["a", "a"]) is None
    # One document more is one more cluster; samples without one stand alone.
    alone = statistics.mean_interval([1.0, 0.0, 1.0], 0, [None, None, "a"])
    assert alone == statistics.mean_interval([1.0, 0.0, 1.0], 0)
    # By hand: each of five scores and half a zero and half a one, weighted at random.
    scores = np.array([0.1, 0.0, 0.7, 0.2, 0.2])
    weights = np.random.default_rng(5).standard_gamma([1] * 5 + [0.5] * 2, (400_000, 7))
    means = weights @ [*scores, 0, 1] / weights.sum(axis=1)
    found = [statistics.mean_interval(list(scores), seed) for seed in range(40)]
    expected = np.quantile(means, [0.025, 0.975])
    assert np.mean(found, axis=0) == pytest.approx(expected, abs=0.004)
    # Documents weigh by their number of questions, and so do the half documents.
    sizes, sums = np.array([1, 4, 2, 3]), np.array([0.5, 1.0, 0.0, 2.4])
    scores = [0.5, 0.25, 0.25, 0.25, 0.25, 0.0, 0.0, 0.8, 0.8, 0.8]
    weights = np.random.default_rng(5).standard_gamma([1] * 4 + [0.5] * 2, (400_000, 6))
    means = weights @ [*sums, 0, 2.5] / (weights @ [*sizes, 2.5, 2.5])
    found = [statistics.mean_interval(scores, seed, [*"abbbbccddd"]) for seed in range(40)]
    assert np.mean(found, axis=0) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.004)


def sample(em, kind, evidence_kept=None):
    return {
        "em": em, "kind": kind, "evidence_kept": evidence_kept, "answered": True,
        "prompt_tokens": 8, "dropped_tokens": 0,
    }  # fmt: skip


def summarized(samples, **options):
    row = dict.fromkeys(
        ("latency_ms_total", "ttft_ms", "document_ms", "question_ttft_ms", "prefill_ms",
         "compress_ms", "decode_ms", "setup_ms", "ms_per_token", "tok_per_s", "ms_per_token_decode",
         "tok_per_s_decode", "kv_cache_gb", "peak_gpu_mem_gb", "peak_prefill_gb", "peak_decode_gb",
         "peak_reserved_gb"), 1.0
    )  # fmt: skip
    row |= dict.fromkeys(("kernel_prefill", "kernel_decode", "decode_mode", "prefill_mode"), "")
    row |= {"success": True, "samples": samples}
    return results.context_summary({}, [row], ["em"], seed=0, n_asked=len(samples), **options)


@pytest.mark.parametrize(
    ("right", "told"),
    [(5, False), (8, False), (2, False), (1, True), (9, True), (0, True), (20, True)],
)
def test_a_score_is_told_from_chance_by_its_interval(right, told):
    samples = [sample(float(n < right), "x") for n in range(20)]
    summary = summarized(samples, chance=0.25)
    low, high = summary["em_ci95"]
    assert summary["chance"] == 0.25
    assert summary["em_told_from_chance"] is told
    assert told is (not low <= 0.25 <= high)


def test_questions_about_one_document_are_taken_together():
    samples = [sample(float(n < 8), "x") | {"document_id": str(n // 4)} for n in range(16)]
    summary = summarized(samples, groups=["kind"])
    assert summary["n_documents"] == 4
    low, high = summary["em_ci95"]
    assert high - low > 0.6
    assert summary["em_by_kind"]["x"]["em_ci95"] == summary["em_ci95"]
    for old in samples:
        del old["document_id"]
    assert summarized(samples)["n_documents"] is None
    low, high = summarized(samples)["em_ci95"]
    assert high - low < 0.5
    assert summarized([])["n_documents"] is None


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
