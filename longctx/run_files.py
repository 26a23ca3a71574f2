"""The files of one run: a journal of rows while it goes on, whole files at the end."""

import errno
import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from filelock import FileLock, Timeout

from longctx import journals, load_results, outcomes, result_schema, results
from longctx.console import notice
from longctx.errors import SettingError
from longctx.interrupt import held_back
from longctx.journals import SUFFIX
from longctx.result_schema import UnusableFileError
from longctx.results import Row, Summary, plain, write_whole

_LOCK = re.compile(r"\.(.+_\d{8}-\d{6}(-\d+)?)\.lock")
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


class RunFiles:
    """The files of one run in `logdir`.

    While it runs, `{run_id}_rows.jsonl`: the run's meta data, then each row as soon as it is made;
    a further process of the run has `{run_id}_rank{n}_rows.jsonl`. At each context's end
    `{run_id}.jsonl` with one line a context. At the end `{run_id}_full.json`, which holds the rows
    too, so that the journals go. A process that is busy with a run holds `.{run_id}.lock`.

    rows: what earlier processes of the run have left.
    """

    def __init__(self, logdir: Path, meta: dict[str, Any], rows: Sequence[Row] = (), rank: int = 0):
        self.meta = meta
        self.rows = list(rows)
        self.logdir = logdir
        self.rank = rank
        name = meta["run_id"] if rank == 0 else f"{meta['run_id']}_rank{rank}"
        self.journal = logdir / f"{name}{SUFFIX}"
        self.summaries_path = logdir / f"{meta['run_id']}.jsonl"
        self.full_path = logdir / f"{meta['run_id']}_full.json"
        self._lock = FileLock(logdir / f".{meta['run_id']}.lock")

    @classmethod
    def start(cls, logdir: Path, meta: dict[str, Any]) -> "RunFiles":
        """A new run; `meta["run_id"]` gets a number behind it when the name is taken.

        Raises SettingError where the folder cannot be written.
        """
        wanted, number = meta["run_id"], 1
        with _folder_errors(logdir):
            _tidy(logdir)
            while not (files := cls(logdir, meta))._begin():
                number += 1
                meta["run_id"] = f"{wanted}-{number}"
        return files

    def _begin(self) -> bool:
        """Take the name; False where it is taken."""
        if not self._acquire():
            return False
        try:
            if any(map(os.path.lexists, [self.journal, self.summaries_path, *self._full_paths()])):
                raise FileExistsError
            # A journal without its first line would belong to no run, and stay.
            with held_back(), open(self.journal, "x", encoding="utf-8") as journal:
                _write_line(journal, {"run_meta": self.meta})
            results.sync_folder(self.logdir)
        except FileExistsError:
            self._end()
            return False
        except OSError:
            self.journal.unlink(missing_ok=True)
            self._end()
            raise
        return True

    @classmethod
    def unfinished(cls, logdir: Path, fingerprint: str) -> "RunFiles | None":
        """The latest unfinished run with this fingerprint that no process is busy with.

        Raises SettingError where the folder cannot be written.
        """
        with _folder_errors(logdir):
            _tidy(logdir)
            for path in journals.newest_first(logdir):
                try:
                    if found := cls._of_journal(path, fingerprint):
                        return found
                except UnusableFileError as error:
                    notice(f"left out: {path.name} {error}")
        return None

    @classmethod
    def _of_journal(cls, path: Path, fingerprint: str) -> "RunFiles | None":
        """The run of a journal, if it has this fingerprint. Raises UnusableFileError."""
        meta = journals.meta(path)
        if meta is None:
            _set_aside_whole(path)
            return None
        files = cls(path.parent, meta)
        if meta["fingerprint"] != fingerprint or files.journal != path:
            return None
        result_schema.check_meta(meta)
        if not files._acquire():
            notice(f"{meta['run_id']} has these settings and is still running")
            return None
        # Between the look and the lock another process may have gone on with it, to its end.
        if any(map(os.path.lexists, files._full_paths())) or not path.exists():
            files.release()
            return None
        try:
            files.rows = files.rows_left()
        except BaseException:
            files.release()
            raise
        return files

    @staticmethod
    def finished(logdir: Path, fingerprint: str) -> Path | None:
        """The full results of a finished run with this fingerprint, unless every request failed."""
        with _folder_errors(logdir):
            _tidy(logdir)
            paths = sorted(logdir.iterdir())
        for path in paths:
            if not path.name.endswith(load_results.FULL_SUFFIXES):
                continue
            try:
                # What does not hold it as text need not be parsed.
                is_named = fingerprint.encode() in load_results.content_of(path)
                full = load_results.read(path) if is_named else None
            except UnusableFileError as error:
                notice(f"left out: {path.name} {error}")
                continue
            if full is None or full["run_meta"].get("fingerprint") != fingerprint:
                continue
            summary = full.get("summary", {})
            is_failed = outcomes.has_failed(summary)
            if failures := outcomes.failures(summary):
                notice(f"{path.name}: {failures}{'; run again' if is_failed else ''}")
            if not is_failed:
                return path
        return None

    def rows_left(self) -> list[Row]:
        """Rows in this folder's journals of the run; a line that is none is set aside.

        Raises UnusableFileError for a journal that is no file, or too large.
        """
        rows = []
        for path in self._journals():
            good, bad = [], []
            for line in journals.lines(path):
                entry = journals.entry(line) or {}
                try:
                    if "run_meta" not in entry:
                        load_results.check_row(entry, self.meta)
                        rows.append(entry)
                    good.append(line)
                except UnusableFileError:
                    bad.append(line)
            if bad:
                aside = journals.set_aside(path, bad)
                write_whole(path, b"".join(good))
                notice(f"{len(bad)} lines of {path.name} cannot be used; they are in {aside}")
        return cast(list[Row], rows)

    def add(self, row: Row) -> None:
        """Keep a row as it will be read again; it is on disk when this returns."""
        row = plain(row)
        with self._writing():
            with open(self.journal, "a", encoding="utf-8", opener=self._open_journal) as journal:
                _write_line(journal, row)
            self.rows.append(row)

    def _open_journal(self, path: str, flags: int) -> int:
        # A first process's journal is there since the start: without its first line it is none.
        creates = 0 if self.rank == 0 else os.O_CREAT
        return os.open(path, flags & ~os.O_CREAT | creates | os.O_NOFOLLOW, 0o666)

    def write_summaries(self, summaries: Iterable[Summary]) -> None:
        """Write the per-context lines."""
        with self._writing():
            write_whole(self.summaries_path, "".join(map(_line, summaries)))

    def finish(
        self, rows: Sequence[Row], summaries: Sequence[Summary], summary: dict[str, Any]
    ) -> dict[str, Any]:
        """Write the full file, let the journals go, and return what was written."""
        full = {"run_meta": self.meta, "ctx_summaries": summaries, "rows": rows, "summary": summary}
        full = plain(full)
        with self._writing():
            # On disk, name and all, before any journal goes.
            write_whole(self.full_path, json.dumps(full, indent=1) + "\n")
            self._remove_journals()
            self._end()
        return full

    def release(self) -> None:
        """Let another process go on with the run."""
        self._lock.release()

    def _acquire(self) -> bool:
        """Whether no other process is busy with the run."""
        lock = Path(self._lock.lock_file)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        except OSError as error:
            if lock.is_symlink() or lock.is_dir():
                return False
            if error.errno not in _NO_LOCKS:
                raise
            notice(f"no locks in {self.logdir}: see to it that no two processes do the same run")
        return True

    def _end(self) -> None:
        """Let the lock and its file go; whoever waits for that very file looks again."""
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self.release()

    def _full_paths(self) -> tuple[Path, Path]:
        return self.full_path, self.full_path.with_name(f"{self.full_path.name}.gz")

    def _journals(self) -> list[Path]:
        run_id = self.meta["run_id"]
        first = self.logdir / f"{run_id}{SUFFIX}"
        others = sorted(self.logdir.glob(f"{glob.escape(run_id)}_rank*{SUFFIX}"))
        return [*filter(os.path.lexists, [first]), *others]

    def _remove_journals(self) -> None:
        # The first process's last: while it is there, all of them are found.
        for journal in reversed(self._journals()):
            journal.unlink()
        results.sync_folder(self.logdir)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Ends the run in one line where a disk is full or a folder gone."""
        try:
            with held_back():
                yield
        except OSError as error:
            raise self.write_error(error) from error

    def write_error(self, error: OSError) -> SystemExit:
        """The end of the run, with a line that says what is kept."""
        rows = (
            f"finished requests are kept in {self.journal}, for RESUME=1"
            if self.journal.is_file()
            else f"{self.journal} is gone, and what was finished with it"
        )
        return SystemExit(f"error: LOGDIR={self.logdir}: {error.strerror}; {rows}")


@contextmanager
def _folder_errors(logdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingError("LOGDIR", logdir, f"cannot be written: {error.strerror}") from error


def _tidy(logdir: Path) -> None:
    """Remove what killed processes have left: half a file, journals of finished runs, locks."""
    results.remove_litter(logdir)
    for path in journals.newest_first(logdir):
        files = RunFiles(logdir, {"run_id": path.name.removesuffix(SUFFIX)})
        if any(map(_is_whole, files._full_paths())) and files._acquire():
            files._remove_journals()
            files._end()
    for path in logdir.glob(".*.lock"):
        name = _LOCK.fullmatch(path.name)
        if name is not None and path.is_file():
            files = RunFiles(logdir, {"run_id": name[1]})
            if not files._journals() and files._acquire():
                files._end() if not files._journals() else files.release()


def _is_whole(path: Path) -> bool:
    try:
        load_results.read(path)
    except UnusableFileError:
        return False
    return True


def _set_aside_whole(path: Path) -> None:
    """Set a journal aside of which nobody knows the settings, unless its run begins right now."""
    files = RunFiles(path.parent, {"run_id": path.name.removesuffix(SUFFIX)})
    if not files._acquire():
        return
    if journals.meta(path) is None:
        lines = journals.lines(path)
        if lines:
            aside = journals.set_aside(path, lines)
            notice(
                f"{path.name} does not begin with a run's settings, so no run can go on with it; "
                f"its {len(lines)} lines are in {aside}"
            )
        path.unlink()
        results.sync_folder(path.parent)
    files._end()


def _write_line(journal: IO[str], value: Any) -> None:
    """Append a line; it is on disk when this returns."""
    journal.write(_line(value))
    journal.flush()
    os.fsync(journal.fileno())


def _line(value: Any) -> str:
    return json.dumps(plain(value), allow_nan=False) + "\n"
