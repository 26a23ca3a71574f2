"""The files of one run: a journal of rows while it goes on, whole files at the end."""

import json
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from longctx import outcomes, saved
from longctx.console import notice
from longctx.interrupt import held_back
from longctx.results import Row, Summary, plain, write_whole

_JOURNAL = "_rows.jsonl"


class RunFiles:
    """The files of one run in `logdir`.

    While it runs, `{run_id}_rows.jsonl`: the run's meta data, then each row as soon as it is made;
    a further process of the run has `{run_id}_rank{n}_rows.jsonl`. At each context's end
    `{run_id}.jsonl` with one line a context. At the end `{run_id}_full.json`, which holds the rows
    too, so that the journals go.

    rows: what earlier processes of the run have left.
    """

    def __init__(self, logdir: Path, meta: dict[str, Any], rows: Sequence[Row] = (), rank: int = 0):
        self.meta = meta
        self.rows = list(rows)
        self.logdir = logdir
        name = meta["run_id"] if rank == 0 else f"{meta['run_id']}_rank{rank}"
        self.journal = logdir / f"{name}{_JOURNAL}"
        self.summaries_path = logdir / f"{meta['run_id']}.jsonl"
        self.full_path = logdir / f"{meta['run_id']}_full.json"
        self._lock = FileLock(logdir / f".{meta['run_id']}.lock")

    @classmethod
    def start(cls, logdir: Path, meta: dict[str, Any]) -> "RunFiles":
        """A new run; `meta["run_id"]` gets a number behind it when the name is taken."""
        wanted, number = meta["run_id"], 1
        while True:
            files = cls(logdir, meta)
            try:
                if files.summaries_path.exists() or files.full_path.exists():
                    raise FileExistsError
                # A journal without its first line would belong to no run, and stay.
                with held_back(), open(files.journal, "x", encoding="utf-8") as journal:
                    files._lock.acquire(timeout=0)
                    journal.write(_line({"run_meta": meta}))
                return files
            except (FileExistsError, Timeout):
                number += 1
                meta["run_id"] = f"{wanted}-{number}"

    @classmethod
    def unfinished(cls, logdir: Path, fingerprint: str) -> "RunFiles | None":
        """The latest unfinished run with this fingerprint that no process is busy with."""
        newest_first = sorted(
            logdir.glob(f"*{_JOURNAL}"), key=lambda path: path.stat().st_mtime, reverse=True
        )
        for path in newest_first:
            meta = _meta(path)
            if meta.get("fingerprint") != fingerprint:
                continue
            files = cls(logdir, meta)
            if files.journal != path or files.full_path.exists():
                continue
            try:
                files._lock.acquire(timeout=0)
            except Timeout:
                notice(f"{meta['run_id']} has these settings and is still running")
                continue
            files.rows = files.rows_left()
            return files
        return None

    @staticmethod
    def finished(logdir: Path, fingerprint: str) -> Path | None:
        """The full results of a finished run with this fingerprint, unless every request failed."""
        for path in sorted(logdir.iterdir()):
            if not path.name.endswith(saved.FULL_SUFFIXES):
                continue
            try:
                full = json.loads(saved.text_of(path))
                if full["run_meta"]["fingerprint"] != fingerprint:
                    continue
                failures = outcomes.failures(full["summary"])
                is_failed = outcomes.has_failed(full["summary"])
            except (
                *(OSError, EOFError, zlib.error),
                *(ValueError, KeyError, TypeError, AttributeError),
            ):
                continue
            if failures:
                notice(f"{path.name}: {failures}{'; run again' if is_failed else ''}")
            if not is_failed:
                return path
        return None

    def rows_left(self) -> list[Row]:
        """Rows in this folder's journals of the run; a line that is none is set aside."""
        rows = []
        for path in self._journals():
            lines = path.read_bytes().splitlines(keepends=True)
            entries = [_entry(line) for line in lines]
            rows += [entry for entry in entries if entry is not None and "run_meta" not in entry]
            corrupt = [line for line, entry in zip(lines, entries, strict=True) if entry is None]
            if corrupt:
                aside = path.with_suffix(".corrupt")
                with open(aside, "ab") as file:
                    file.writelines(corrupt)
                good = (line for line in lines if line not in corrupt)
                write_whole(path, b"".join(good).decode())
                notice(f"{len(corrupt)} lines of {path.name} cannot be read; they are in {aside}")
        return rows

    def add(self, row: Row) -> None:
        """Keep a row as it will be read again; it is on disk when this returns."""
        row = plain(row)
        with held_back():
            self.rows.append(row)
            with open(self.journal, "a", encoding="utf-8") as journal:
                journal.write(_line(row))
                journal.flush()
                os.fsync(journal.fileno())

    def write_summaries(self, summaries: Iterable[Summary]) -> None:
        """Write the per-context lines."""
        with held_back():
            write_whole(self.summaries_path, "".join(map(_line, summaries)))

    def finish(
        self, rows: Sequence[Row], summaries: Sequence[Summary], summary: Summary
    ) -> dict[str, Any]:
        """Write the full file, let the journals go, and return what was written."""
        full: dict[str, Any] = plain(
            {
                "run_meta": self.meta,
                "ctx_summaries": list(summaries),
                "rows": list(rows),
                "summary": summary,
            }
        )
        with held_back():
            write_whole(self.full_path, json.dumps(full, indent=1) + "\n")
            for journal in self._journals():
                journal.unlink()
            self.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)
        return full

    def release(self) -> None:
        """Let another process go on with the run."""
        self._lock.release()

    def _journals(self) -> list[Path]:
        run_id = self.meta["run_id"]
        ranks = sorted(self.logdir.glob(f"{run_id}_rank*{_JOURNAL}"))
        own = self.logdir / f"{run_id}{_JOURNAL}"
        return [own, *ranks] if own.exists() else ranks


def _line(value: Any) -> str:
    return json.dumps(plain(value), allow_nan=False) + "\n"


def _meta(journal: Path) -> dict[str, Any]:
    with open(journal, "rb") as file:
        entry = _entry(file.readline())
    return (entry or {}).get("run_meta", {})


def _entry(line: bytes) -> dict[str, Any] | None:
    """The line's object; None of a line that was cut off or overwritten."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and line.endswith(b"\n") else None
