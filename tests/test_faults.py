"""Each fault that a run can meet: what is on disk afterwards, and that nothing finished is lost."""

import json
import os
import random
import signal
import time

import pytest
import torch

import narrativeqa_eval
from longctx import (
    config,
    models,
    outcomes,
    preflight,
    requests,
    results,
    run_metadata,
    runner,
)
from longctx.errors import SettingError
from longctx.run_files import RunFiles
from tests.runs import environ, fork, run, without_timings

pytestmark = pytest.mark.model

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB")
NO_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

NO_HANDLE = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")


def parts(summary):
    """Samples scored, failed, out of memory, not run, left out: as many as were asked for."""
    found = [summary[key] for key in ("n_scored", *outcomes.PARTS)]
    assert sum(found) == summary["n_asked"]
    return found


def fail(monkeypatch, when, error):
    """Let the requests fail of which `when(input_ids)` is true."""
    real = requests.generate

    def generate(model, input_ids, *arguments, **options):
        if when(input_ids):
            raise error
        return real(model, input_ids, *arguments, **options)

    monkeypatch.setattr(requests, "generate", generate)


def outputs(full):
    return {
        (row["context_tokens"], sample["sample_id"]): sample["output"]
        for row in full["rows"]
        for sample in row["samples"]
    }


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, NO_MEMORY, NO_HANDLE])
@pytest.mark.parametrize("oom", ["skip", "stop"])
def test_out_of_memory_ends_a_context_or_all_longer_ones(
    tiny_folder, tmp_path, monkeypatch, oom, error
):
    fail(monkeypatch, lambda ids: 250 < ids.shape[1] < 350, error)
    full = run(tiny_folder, tmp_path, CONTEXTS="300,400,200", OOM=oom)
    failed, longer, shorter = full["ctx_summaries"]
    assert failed["n_oom"] == failed["n_requests"] == 1
    assert failed["skipped_after_oom_at"] is None
    assert shorter["total_count"] == 5
    assert longer["total_count"] == (5 if oom == "skip" else 0)
    assert longer["skipped_after_oom_at"] == (None if oom == "skip" else 300)
    assert full["summary"]["n_oom"] == 1
    assert parts(failed) == [0, 0, 1, 4, 0]
    assert parts(longer) == ([5, 0, 0, 0, 0] if oom == "skip" else [0, 0, 0, 5, 0])
    assert sum(parts(full["summary"])) == 15


@pytest.mark.parametrize("fits", [1, 2, 3])
def test_out_of_memory_retries_with_smaller_batches(tiny_folder, tmp_path, monkeypatch, fits):
    settings = {"CONTEXTS": "200", "N_SAMPLES": "9", "BATCH_SIZE": "4"}
    expected = outputs(run(tiny_folder, tmp_path / "unbroken", **settings))
    fail(monkeypatch, lambda ids: ids.shape[0] > fits, OUT_OF_MEMORY)
    full = run(tiny_folder, tmp_path, OOM="retry_smaller_batch", **settings)
    assert outputs(full) == expected
    sizes = [row["batch_size"] for row in full["rows"] if row["success"]]
    assert sizes == {1: [1] * 9, 2: [2] * 4 + [1], 3: [2] * 4 + [1]}[fits]
    assert full["summary"]["n_oom"] == (2 if fits > 1 else 6)
    assert parts(full["summary"]) == [9, 0, 0, 0, 0]
    # Of the largest batch that ran.
    assert full["ctx_summaries"][0]["n_timed_requests"] == (4 if fits > 1 else 9)
    places = [row["first_sample"] for row in full["rows"] if row["success"]]
    assert places == sorted(places)


@pytest.mark.parametrize("batch_size", ["1", "3"])
def test_a_sample_that_fails_is_a_row_with_its_error(
    tiny_folder, tmp_path, monkeypatch, capsys, batch_size
):
    settings = {"CONTEXTS": "200", "N_SAMPLES": "7", "BATCH_SIZE": batch_size, "WARMUP": "0"}
    whole = run(tiny_folder, tmp_path / "unbroken", **settings)
    ids = [sample["sample_id"] for row in whole["rows"] for sample in row["samples"]]
    real = requests.scored_samples

    def scored(task, batch, *arguments, **options):
        if ids[4] in [sample.sample_id for sample, _ in batch]:
            raise ZeroDivisionError("nothing\nto divide by")
        return real(task, batch, *arguments, **options)

    monkeypatch.setattr(requests, "scored_samples", scored)
    capsys.readouterr()
    full = run(tiny_folder, tmp_path, **settings)
    (failed,) = [row for row in full["rows"] if not row["success"]]
    assert failed["error"] == "ZeroDivisionError: nothing"
    assert (failed["sample_ids"], failed["oom"], failed["batch_size"]) == ([ids[4]], False, 1)
    (summary,) = full["ctx_summaries"]
    assert (summary["n_failed"], summary["n_oom"], summary["total_count"]) == (1, 0, 6)
    assert parts(summary) == [6, 1, 0, 0, 0]
    assert summary["n_timed_requests"] == (6 if batch_size == "1" else 1)
    note = "times, throughput and memory are of the 1 requests of the largest batch; 3 of a smaller"
    assert (note in capsys.readouterr().err) is (batch_size == "3")
    expected = outputs(whole)
    expected.pop((200, ids[4]))
    assert outputs(full) == expected


def test_logits_that_are_nan_are_named(tiny_folder, tmp_path, monkeypatch):
    def broken_load(*arguments):
        model, seconds = load(*arguments)
        model.lm_head.weight.data[3] = torch.nan
        return model, seconds

    load = models.load
    monkeypatch.setattr(models, "load", broken_load)
    full = run(tiny_folder, tmp_path, CONTEXTS="200", N_SAMPLES="2")
    assert [row["error"] for row in full["rows"]] == [
        "FloatingPointError: the model's logits are NaN at new token 1"
    ] * 2
    assert full["ctx_summaries"][0]["ttft_ms_p50"] is None


def test_a_device_that_is_lost_ends_the_run_after_the_row(tiny_folder, tmp_path, monkeypatch):
    error = torch.AcceleratorError("CUDA error: device-side assert triggered", 710)
    fail(monkeypatch, lambda ids: ids.shape[1] > 250, error)
    with pytest.raises(torch.AcceleratorError):
        run(tiny_folder, tmp_path)
    (journal,) = tmp_path.glob("*_rows.jsonl")
    rows = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert [row["success"] for row in rows] == [True] * 5 + [False]
    assert "device-side assert" in rows[-1]["error"]


def test_a_clock_that_goes_backwards_overwrites_nothing(tiny_folder, tmp_path, monkeypatch):
    class Backwards(run_metadata.datetime):
        hours = 12

        @classmethod
        def now(cls, zone=None):
            cls.hours -= 1
            return run_metadata.datetime(2026, 1, 1, max(cls.hours, 9), 0, 0, tzinfo=zone)

    settings = {"CONTEXTS": "150", "N_SAMPLES": "1"}
    monkeypatch.setattr(run_metadata, "datetime", Backwards)
    runs = [run(tiny_folder, tmp_path, **settings)["run_meta"]["run_id"] for _ in range(4)]
    assert len(set(runs)) == 4
    assert len(list(tmp_path.glob("*_full.json"))) == 4


def test_what_is_done_is_not_done_again(tiny_folder, tmp_path, capsys, monkeypatch):
    settings = {"CONTEXTS": "200", "N_SAMPLES": "2", "SKIP_DONE": "1"}
    first = run(tiny_folder, tmp_path, **settings)
    assert "SKIP_DONE" not in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(models, "load", lambda *_: pytest.fail("the model was loaded"))
        assert run(tiny_folder, tmp_path, **settings) is None
    assert f"{first['run_meta']['run_id']}_full.json" in capsys.readouterr().err
    for change in ({"SEED": "1"}, {"KV_MODE": "l2"}, {"MAX_NEW_TOKENS": "5"}):
        assert run(tiny_folder, tmp_path, **settings | change) is not None
    monkeypatch.setattr(run_metadata, "code_fingerprint", lambda: "other code")
    assert run(tiny_folder, tmp_path, **settings) is not None
    (tmp_path / "torn_full.json").write_text('{"run_meta": {"fing')
    monkeypatch.undo()
    assert run(tiny_folder, tmp_path, **settings) is None


def test_two_processes_in_one_folder(tiny_folder, tmp_path):
    """The second neither takes over the first one's unfinished run nor its name."""
    settings = {"CONTEXTS": "200", "RESUME": "1"}
    values = environ(tiny_folder, tmp_path, **settings)
    busy = runner.Run(
        narrativeqa_eval.TASK, *config.read(narrativeqa_eval.TASK.settings, values)
    )._files()
    full = run(tiny_folder, tmp_path, **settings)
    assert full["run_meta"]["run_id"] != busy.meta["run_id"]
    assert busy.journal.exists()
    busy.release()
    taken_over = run(tiny_folder, tmp_path, **settings)
    assert taken_over["run_meta"]["run_id"] == busy.meta["run_id"]


def test_a_disk_that_is_full_or_read_only(tmp_path, monkeypatch):
    real = os.fsync

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(SettingError, match=r"LOGDIR=.*No space left"):
        preflight.writable_folder(str(tmp_path))
    monkeypatch.setattr(os, "fsync", real)
    preflight.writable_folder(str(tmp_path))


def test_a_disk_that_fills_up_ends_the_run_with_what_is_there(tiny_folder, tmp_path, monkeypatch):
    real, added = RunFiles.add, []

    def add(self, row):
        if len(added) == 7:
            raise OSError(28, "No space left on device")
        added.append(row)
        real(self, row)

    monkeypatch.setattr(RunFiles, "add", add)
    with pytest.raises(SystemExit, match="No space left on device; finished requests are kept"):
        run(tiny_folder, tmp_path)
    monkeypatch.setattr(RunFiles, "add", real)
    resumed = run(tiny_folder, tmp_path, RESUME="1")
    assert [row["ttft_ms"] for row in resumed["rows"][:7]] == [
        results.plain(row["ttft_ms"]) for row in added
    ]
    assert len(resumed["rows"]) == 10


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_an_interrupted_run_writes_what_is_there_and_goes_on(tiny_folder, tmp_path, number, code):
    settings = {"N_SAMPLES": "24", "MAX_NEW_TOKENS": "20"}
    process = fork(tiny_folder, tmp_path, **settings)
    while process.poll() is None:
        journals = list(tmp_path.glob("*_rows.jsonl"))
        if journals and len(journals[0].read_text().splitlines()) > 3:
            process.send_signal(number)
            break
        time.sleep(0.01)
    _, notes = process.communicate(timeout=60)
    assert process.returncode == code
    assert "RESUME=1 goes on" in notes
    assert "Traceback" not in notes
    (journal,) = tmp_path.glob("*_rows.jsonl")
    rows = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    (lines,) = tmp_path.glob("*Qnone_*[0-9].jsonl")
    (line,) = [json.loads(line) for line in lines.read_text().splitlines()]
    assert line["n_requests"] == len(rows) >= 3
    assert parts(line) == [len(rows), 0, 0, 24 - len(rows), 0]
    resumed = run(tiny_folder, tmp_path, RESUME="1", **settings)
    assert resumed["rows"][: len(rows)] == rows
    assert len(resumed["rows"]) == 48


@pytest.mark.timeout(400)
def test_thirty_kills_lose_no_finished_row_and_repeat_none(tiny_folder, tmp_path):
    settings = {"N_SAMPLES": "60", "CONTEXTS": "100,130", "MAX_NEW_TOKENS": "4"}
    unbroken = run(tiny_folder, tmp_path / "unbroken", **settings)
    broken = tmp_path / "broken"
    rng, rows, kills = random.Random(0), [], 0
    while kills < 30:
        child = fork(tiny_folder, broken, RESUME="1", **settings)
        # Most of the time goes by before the first row; wait for new ones, then for a moment.
        ends_at = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < ends_at:
            journals = list(broken.glob("*_rows.jsonl"))
            if journals and journals[0].read_bytes().count(b"\n") > len(rows) + 1:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        journals = list(broken.glob("*_rows.jsonl"))
        if not journals:
            break
        lines = journals[0].read_bytes().splitlines(keepends=True)[1:]
        whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
        assert whole[: len(rows)] == rows
        rows = whole
    assert kills >= 10
    full = json.loads(next(broken.glob("*_full.json")).read_text()) if not journals else None
    full = full or run(tiny_folder, broken, RESUME="1", **settings)
    assert full["rows"][: len(rows)] == rows
    assert without_timings(full["rows"]) == without_timings(unbroken["rows"])
    assert without_timings(full["ctx_summaries"]) == without_timings(unbroken["ctx_summaries"])
