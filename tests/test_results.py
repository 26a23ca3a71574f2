import json

import pytest

from longctx import results, statistics


def meta(fingerprint="f"):
    return {"run_id": "run", "fingerprint": fingerprint}


def test_a_row_is_on_disk_at_once_and_the_journal_goes_at_the_end(tmp_path):
    files = results.RunFiles.start(tmp_path, meta())
    files.add({"context_tokens": 8, "request": 0, "success": True})
    lines = files.journal.read_text().splitlines()
    assert [json.loads(line) for line in lines][1]["request"] == 0
    files.write_summaries([{"context_tokens": 8}])
    files.finish([{"context_tokens": 8}], {"n": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.jsonl", "run_full.json"]
    full = json.loads(files.full_path.read_text())
    assert set(full) == {"run_meta", "ctx_summaries", "rows", "summary"}


def test_two_runs_in_one_second_have_two_names(tmp_path):
    first = results.RunFiles.start(tmp_path, meta())
    second = results.RunFiles.start(tmp_path, meta())
    assert first.journal != second.journal
    assert second.meta["run_id"] == "run-2"
    first.finish([], {})
    assert results.RunFiles.start(tmp_path, meta()).meta["run_id"] == "run-3"


@pytest.mark.parametrize("tail", ["", '{"request": 2, "succ', "\x00\x00", "not json\n"])
def test_resume_finds_whole_rows_and_drops_a_torn_one(tmp_path, tail):
    files = results.RunFiles.start(tmp_path, meta())
    for request in range(2):
        files.add({"context_tokens": 8, "request": request, "text": "line\u2028separator \ud800"})
    with open(files.journal, "a") as journal:
        journal.write(tail)
    assert results.RunFiles.unfinished(tmp_path, "other") is None
    found = results.RunFiles.unfinished(tmp_path, "f")
    assert [row["request"] for row in found.rows] == [0, 1]
    found.add({"context_tokens": 8, "request": 2})
    again = results.RunFiles.unfinished(tmp_path, "f")
    assert [row["request"] for row in again.rows] == [0, 1, 2]


def test_what_is_not_a_number_becomes_null(tmp_path):
    files = results.RunFiles.start(tmp_path, meta())
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
