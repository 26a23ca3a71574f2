"""Files of runs as others left them: damaged journals, links, pipes, full disks, races, litter."""

import errno
import gzip
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from longctx import results, run_files
from longctx.errors import SettingError
from longctx.run_files import RunFiles
from tests.saved_runs import full_results, journal_meta, journal_row, write

RUN_ID = "m_sdpa_20260101-000000"


@pytest.fixture
def killed(tmp_path):
    """The journal of a run that was killed after two rows."""
    files = RunFiles.start(tmp_path, journal_meta())
    for number in range(2):
        files.add(journal_row(number))
    files.release()
    return files.journal


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def spoiled(row, where, value):
    target = row if where[0] == "row" else row["samples"][0]
    if value is ...:
        del target[where[1]]
    else:
        target[where[1]] = value
    return row


NO_ROWS = [
    *(7, [], {}, "text", None, {"context_tokens": 8}, [journal_row(1)]),
    *(
        spoiled(journal_row(1), ("row", key), value)
        for key in ("ttft_ms", "samples", "first_sample", "batch_size", "success", "kernel_decode")
        for value in (..., {}, [1], "x" if key != "kernel_decode" else 3)
    ),
    *(
        spoiled(journal_row(1), ("sample", key), value)
        for key in ("meteor", "prompt_tokens", "references", "answered", "prediction")
        for value in (..., "x" if key != "prediction" else 3, {})
    ),
    *(journal_row(1, first_sample=number) for number in (-1, 9, 10**12, 10**400)),
    *(journal_row(1, batch_size=number) for number in (0, 2, 10**12)),
]


def test_a_line_that_is_json_but_no_row_is_set_aside(tmp_path, killed, capsys):
    lines = [json.dumps(entry) + "\n" for entry in NO_ROWS] + ["[" * 100_000 + "\n"]
    with open(killed, "a") as journal:
        journal.writelines([*lines, json.dumps(journal_row(2)) + "\n"])
    found = RunFiles.unfinished(tmp_path, "f")
    assert [row["request"] for row in found.rows] == [0, 1, 2]
    assert (tmp_path / "run_rows.corrupt").read_text() == "".join(lines)
    assert f"{len(lines)} lines of run_rows.jsonl cannot be used" in capsys.readouterr().err
    found.release()
    assert len(RunFiles.unfinished(tmp_path, "f").rows) == 3


@pytest.mark.parametrize(
    "header",
    [b"", b"\0\0\n", b"7\n", b'{"run_meta": 7}\n', b'{"run_meta": {"run_id": 7}}\n', b"[" * 10**5],
)
def test_rows_behind_a_damaged_header_are_set_aside(tmp_path, killed, capsys, header):
    rows = killed.read_bytes().split(b"\n", 1)[1]
    killed.write_bytes(header + rows)
    (tmp_path / "run_rows.corrupt").mkdir()
    assert RunFiles.unfinished(tmp_path, "f") is None
    assert names(tmp_path) == ["run_rows.corrupt", "run_rows.corrupt-2"]
    assert (tmp_path / "run_rows.corrupt-2").read_bytes() == header + rows
    assert "run_rows.jsonl does not begin with a run's settings" in capsys.readouterr().err


def test_meta_data_of_wrong_types_are_left_out_by_name(tmp_path, killed, capsys):
    meta = journal_meta(score_names=None)
    killed.write_text(json.dumps({"run_meta": meta}) + "\n")
    assert RunFiles.unfinished(tmp_path, "f") is None
    assert "left out: run_rows.jsonl is not full results of a run: score_names" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("suffix", ["_rows.jsonl", "_full.json", "_full.json.gz"])
def test_what_is_no_file_stops_neither_resume_nor_skip_done(tmp_path, killed, suffix):
    os.mkfifo(tmp_path / f"a{suffix}")
    os.symlink(f"b{suffix}", tmp_path / f"b{suffix}")
    os.symlink("nowhere", tmp_path / f"c{suffix}")
    os.symlink("/dev/zero", tmp_path / f"d{suffix}")
    (tmp_path / f"e{suffix}").mkdir()
    (tmp_path / f"f{suffix}").write_text("f" + "[" * 100_000)
    os.symlink(killed, tmp_path / "link_rows.jsonl")
    assert RunFiles.finished(tmp_path, "f") is None
    found = RunFiles.unfinished(tmp_path, "f")
    assert (found.journal, len(found.rows)) == (killed, 2)
    assert RunFiles.start(tmp_path, journal_meta()).meta["run_id"] == "run-2"


def test_a_lock_that_is_no_file_is_a_name_that_is_taken(tmp_path):
    (tmp_path / ".run.lock").mkdir()
    os.symlink("nowhere", tmp_path / ".run-2.lock")
    assert RunFiles.start(tmp_path, journal_meta()).meta["run_id"] == "run-3"


def test_a_journal_that_is_too_large_is_left_out(tmp_path, killed, monkeypatch, capsys):
    monkeypatch.setattr(run_files.load_results, "MAX_BYTES", 1000)
    assert RunFiles.unfinished(tmp_path, "f") is None
    assert "run_rows.jsonl is larger than" in capsys.readouterr().err


def finish_elsewhere(folder):
    """Another process goes on with the run, to its end."""
    other = RunFiles.unfinished(folder, "f")
    other.finish(other.rows, [], {})


def test_a_run_that_another_process_ended_meanwhile_is_not_taken_over(
    tmp_path, killed, monkeypatch
):
    real = RunFiles._acquire

    def late(self):
        monkeypatch.setattr(RunFiles, "_acquire", real)
        finish_elsewhere(tmp_path)
        return self._acquire()

    monkeypatch.setattr(RunFiles, "_acquire", late)
    assert RunFiles.unfinished(tmp_path, "f") is None
    assert json.loads((tmp_path / "run_full.json").read_text())["rows"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_finished_run_whose_journal_is_still_there_is_not_taken_over(tmp_path, packed):
    files = RunFiles.start(tmp_path, journal_meta(run_id=RUN_ID))
    files.release()
    (path,) = write(tmp_path, **{RUN_ID: full_results([0.5], fingerprint="f")})
    if packed:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert RunFiles.unfinished(tmp_path, "f") is None
    assert names(tmp_path) == [f"{RUN_ID}_full.json.gz" if packed else f"{RUN_ID}_full.json"]


def test_a_journal_goes_only_when_the_results_are_on_disk(tmp_path, monkeypatch):
    files = RunFiles.start(tmp_path, journal_meta())
    calls = []
    for name in ("fsync", "replace", "unlink"):
        monkeypatch.setattr(os, name, recorded(getattr(os, name), name, calls))
    files.finish([], [], {})
    assert calls[:4] == ["fsync file", "replace", "fsync folder", "unlink"]
    assert calls.count("fsync folder") == 2


def recorded(real, name, calls):
    def call(*arguments, **options):
        is_folder = name == "fsync" and os.path.isdir(f"/proc/self/fd/{arguments[0]}")
        calls.append(f"{name} {'folder' if is_folder else 'file'}" if name == "fsync" else name)
        return real(*arguments, **options)

    return call


def test_litter_of_killed_writes_is_swept_and_what_is_in_use_stays(tmp_path, monkeypatch):
    litter = tmp_path / f".{'0' * 16}.unfinished"
    litter.write_text("half")
    new, old = (tmp_path / f".{digit * 16}.unfinished" for digit in "12")
    new.touch()
    old.touch()
    os.utime(old, (time.time() - 3600,) * 2)
    (tmp_path / ".mine.unfinished").write_text("")
    for name in (f".{RUN_ID}.lock", f".{RUN_ID}-2.lock", ".other.lock"):
        (tmp_path / name).touch()
    busy = run_files.FileLock(tmp_path / f".{RUN_ID}-2.lock")
    busy.acquire()
    real, during = os.replace, []

    def replace(*paths):
        results.remove_litter(tmp_path)
        during.extend(path.name for path in tmp_path.glob("*.unfinished"))
        real(*paths)

    monkeypatch.setattr(os, "replace", replace)
    results.write_whole(tmp_path / "a.json", "{}")
    assert len(during) == 3  # its own too
    RunFiles.finished(tmp_path, "f")
    assert names(tmp_path) == sorted(
        [new.name, ".mine.unfinished", f".{RUN_ID}-2.lock", ".other.lock", "a.json"]
    )


def test_an_interrupt_right_after_the_replace_stays_an_interrupt(tmp_path, monkeypatch):
    real = os.replace

    def replace(*paths):
        real(*paths)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        results.write_whole(tmp_path / "a", "whole")
    assert (tmp_path / "a").read_text() == "whole"


def failing(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("name", ["fsync", "open"])
def test_a_disk_that_is_full_at_the_start_is_one_line(tmp_path, monkeypatch, number, name):
    monkeypatch.setattr(os, name, failing(number))
    with pytest.raises(SettingError, match=rf"LOGDIR=.*cannot be written: {os.strerror(number)}"):
        RunFiles.start(tmp_path, journal_meta())
    monkeypatch.undo()
    assert names(tmp_path) == []


def test_a_folder_that_is_gone_is_one_line(tmp_path):
    with pytest.raises(SettingError, match=r"LOGDIR=.*cannot be written: No such file"):
        RunFiles.finished(tmp_path / "gone", "f")


@pytest.mark.parametrize("act", ["add", "write_summaries", "finish"])
def test_a_disk_that_fills_up_is_one_line_and_the_journal_stays(tmp_path, killed, monkeypatch, act):
    files = RunFiles.unfinished(tmp_path, "f")
    arguments = {"add": [journal_row(2)], "write_summaries": [[]], "finish": [files.rows, [], {}]}
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(SystemExit, match="No space left on device; finished requests are kept in"):
        getattr(files, act)(*arguments[act])
    monkeypatch.undo()
    files.release()
    assert not list(tmp_path.glob("*.unfinished"))
    assert len(RunFiles.unfinished(tmp_path, "f").rows) >= 2


def test_rows_are_not_written_into_a_journal_that_is_gone_or_a_link(tmp_path, killed):
    files = RunFiles.unfinished(tmp_path, "f")
    killed.unlink()
    with pytest.raises(SystemExit, match=r"No such file or directory; .* is gone, and what was"):
        files.add(journal_row(2))
    (tmp_path / "precious").write_text("precious")
    os.symlink("precious", killed)
    with pytest.raises(SystemExit, match="Too many levels of symbolic links"):
        files.add(journal_row(2))
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_files.FileLock, "acquire", failing(errno.ENOLCK))
    files = RunFiles.start(tmp_path, journal_meta())
    files.add(journal_row(0))
    assert len(RunFiles.unfinished(tmp_path, "f").rows) == 1
    assert "no locks in" in capsys.readouterr().err


def test_the_same_run_started_many_times_at_once_has_as_many_names(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        started = list(pool.map(lambda _: RunFiles.start(tmp_path, journal_meta()), range(8)))
    assert len({files.meta["run_id"] for files in started}) == 8
    assert RunFiles.unfinished(tmp_path, "f") is None


def test_a_bad_file_does_not_hide_a_finished_run(tmp_path, capsys):
    (tmp_path / "a_full.json").write_text('{"run_meta": {"fingerprint": "f1"}}')
    (path,) = write(tmp_path, b=full_results([0.5], fingerprint="f1"))
    assert RunFiles.finished(tmp_path, "f1") == path
    assert "left out: a_full.json is not full results of a run" in capsys.readouterr().err
