"""Cells of a grid: settings, each run as a command in a process of its own, and their records."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from longctx.redaction import masked
from longctx.results import write_whole

_POLL_S = 0.1
_GRACE_S = 5  # from the request to end until the process group is killed
_TAIL_LINES = 20


@dataclass(frozen=True)
class Cell:
    """One run: a script and the variables it is given, LOGDIR left out."""

    script: Path
    variables: Mapping[str, str]

    @property
    def key(self) -> str:
        """Twelve hex digits that cells of the same script and variables share."""
        text = json.dumps([self.script.name, sorted(self.variables.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass
class Record:
    """What became of a cell; kept as `cell.json` in its folder.

    status: "done", "failed" or "hung", the last for one that ran past its time limit.
    reason: why it is not done, in one line.
    result: name of the full results' file in the cell's folder.
    """

    variables: dict[str, str]
    script: str
    status: str
    reason: str | None = None
    exit_code: int | None = None
    wall_s: float | None = None
    gpu: str | None = None
    result: str | None = None
    stderr_tail: list[str] = field(default_factory=list)


@dataclass
class _Running:
    cell: Cell
    folder: Path
    gpu: str | None
    process: subprocess.Popen[bytes]
    began: float
    results_before: frozenset[Path]


def finished(cell: Cell, logdir: Path) -> Record | None:
    """The record of a cell that is done, with its results still there."""
    folder = logdir / cell.key
    try:
        record = Record(**json.loads((folder / "cell.json").read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, TypeError):
        return None
    is_there = record.result is not None and (folder / record.result).is_file()
    return record if record.status == "done" and is_there else None


def run(
    cells: Sequence[Cell],
    logdir: Path,
    timeout_s: float,
    gpus: Sequence[str | None],
    environ: Mapping[str, str],
    report: Callable[[Cell, Record], None],
) -> None:
    """Run cells in `environ`, one at a time on each of `gpus` (None: what the process finds).

    Each writes into `logdir/KEY`: its results, `stdout.txt`, `stderr.txt` and `cell.json`. `report`
    is told of each as soon as it has ended. An interrupt ends what is running, without a record.
    """
    waiting, running = list(cells), dict[str | None, _Running]()
    try:
        while waiting or running:
            for gpu in gpus:
                if waiting and gpu not in running:
                    running[gpu] = _start(waiting.pop(0), logdir, gpu, environ)
            time.sleep(_POLL_S)
            for gpu, now in list(running.items()):
                is_late = time.monotonic() - now.began > timeout_s
                if now.process.poll() is None and not is_late:
                    continue
                is_hung = now.process.poll() is None
                _end(now)
                del running[gpu]
                record = _record(now, timeout_s if is_hung else None)
                write_whole(now.folder / "cell.json", json.dumps(asdict(record), indent=1) + "\n")
                report(now.cell, record)
    finally:
        for now in running.values():
            _signal_group(now, signal.SIGTERM)
        for now in running.values():
            _end(now)


def _start(cell: Cell, logdir: Path, gpu: str | None, environ: Mapping[str, str]) -> _Running:
    folder = logdir / cell.key
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cell.json").unlink(missing_ok=True)
    # A path from here: results hold their command, which is to work on another machine.
    variables = {**cell.variables, "LOGDIR": os.path.relpath(folder)}
    if gpu is not None:
        variables["CUDA_VISIBLE_DEVICES"] = gpu
    before = frozenset(folder.glob("*_full.json"))
    with open(folder / "stdout.txt", "wb") as stdout, open(folder / "stderr.txt", "wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(cell.script)],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**environ, **variables},
            start_new_session=True,
        )
    return _Running(cell, folder, gpu, process, time.monotonic(), before)


def _end(running: _Running) -> None:
    """End a cell's process and all that it started, whether it is still running or not."""
    _signal_group(running, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.process.wait(timeout=_GRACE_S)
    _signal_group(running, signal.SIGKILL)
    running.process.wait()


def _signal_group(running: _Running, number: int) -> None:
    # Where all of the group has ended there is nothing to do.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.process.pid, number)


def _record(running: _Running, timeout_s: float | None) -> Record:
    # Written by libraries too, which know nothing of the guard of a run's own text.
    stderr = masked((running.folder / "stderr.txt").read_text(encoding="utf-8", errors="replace"))
    tail = [line for line in stderr.splitlines() if line.strip()][-_TAIL_LINES:]
    record = Record(
        variables=dict(running.cell.variables),
        script=running.cell.script.name,
        status="failed",
        exit_code=running.process.returncode,
        wall_s=round(time.monotonic() - running.began, 1),
        gpu=running.gpu,
    )
    results = set(running.folder.glob("*_full.json")) - running.results_before
    if timeout_s is not None:
        record.status, record.reason = "hung", f"ended after {timeout_s:g} s"
    elif record.exit_code:
        record.reason = f"exit code {record.exit_code}" + (f": {tail[-1]}" if tail else "")
    elif not results:
        record.reason = "wrote no *_full.json into LOGDIR"
    else:
        record.status, record.result = "done", max(results).name
    if record.status != "done":
        record.stderr_tail = tail
    return record
