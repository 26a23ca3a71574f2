"""Runs in processes of their own: a crash, a hang or a lost device ends one run, not the sweep."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Sequence
from pathlib import Path
from threading import Thread

from longctx import config, load_results
from longctx.cells import Cell, Outcome
from longctx.console import notice

_POLL_S = 0.1
_GRACE_S = 10  # from the request to end until a process and all that it started are killed
_LAST_LINES = 50
_SUFFIXES = "|".join(map(re.escape, load_results.FULL_SUFFIXES))
# What a run prints at its end, or in place of one that is done.
_RESULTS = re.compile(rf"(?:  |.* have their results in )(\S.*(?:{_SUFFIXES}))")


def run(
    cells: Sequence[Cell], timeout_s: float | None, gpus: Sequence[str | None]
) -> Generator[tuple[Cell, Outcome], None, None]:
    """Run each script as a command, one at a time on each of `gpus`; what has ended comes first.

    gpus: values of CUDA_VISIBLE_DEVICES; None leaves it as it is. Closing the iterator ends what is
    running.
    """
    waiting, running = list(cells), dict[str | None, _Running]()
    try:
        while waiting or running:
            for gpu in gpus:
                if waiting and gpu not in running:
                    notice(
                        f"run {len(cells) - len(waiting) + 1} of {len(cells)}: {waiting[0].line}"
                    )
                    running[gpu] = _Running(waiting.pop(0), gpu)
            time.sleep(_POLL_S)
            for gpu, one in list(running.items()):
                is_running = one.process.poll() is None
                if is_running and (timeout_s is None or one.seconds <= timeout_s):
                    continue
                one.end()
                del running[gpu]
                yield one.cell, one.outcome(f"ended after {timeout_s:g} s" if is_running else None)
    finally:
        for one in running.values():
            one.signal(signal.SIGTERM)
        for one in running.values():
            one.end()


class _Running:
    """A run's process, the first of a group; what it prints is shown as it comes."""

    def __init__(self, cell: Cell, gpu: str | None):
        self.cell = cell
        self._prefix = "" if gpu is None else f"[GPU {gpu}] "
        self._lines = deque[str](maxlen=_LAST_LINES)
        chosen = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        self._began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, cell.script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=config.environment_with({**cell.changes, **chosen}),
            start_new_session=True,
            text=True,
            errors="replace",
        )
        self._reader = Thread(target=self._show, daemon=True)
        self._reader.start()

    def _show(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line.rstrip())
            print(f"{self._prefix}{line}", end="", file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self._began

    def signal(self, number: int) -> None:
        """To the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(self.process.pid, number)

    def end(self) -> None:
        """End the process and all that it started, whether it is still running or not."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=_GRACE_S)
        self.signal(signal.SIGKILL)
        self.process.wait()
        self._reader.join()

    def outcome(self, problem: str | None) -> Outcome:
        """What became of the run that has ended; `problem`: what is known of it already."""
        named = filter(None, map(_RESULTS.fullmatch, self._lines))
        results = [Path(found[1]) for found in named]
        if problem is None and self.process.returncode:
            said = [line for line in self._lines if line.strip()]
            problem = ": ".join([f"exit code {self.process.returncode}", *said[-1:]])
        elif problem is None and not results:
            problem = "it named no results"
        return Outcome(problem, results[-1] if results else None, self.seconds)
