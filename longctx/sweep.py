"""Many runs in one process, so that model and prompts are made once: `python -m longctx.sweep`.

Reads one run a line from stdin, a script and what it changes of the environment's settings:

    narrativeqa_eval.py ATTN_IMPL=sdpa KV_MODE=l2 KEEP_RATIO=0.5

Results are those of the same lines run one by one. A run that cannot be made is noted and the next
one begins. Exit code 0: all are done; 1: some are not, or the device is lost; 2: a line that names
no script and settings; 130 and 143: interrupted, with what is finished kept.
"""

import argparse
import importlib
import shlex
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from longctx import config, console
from longctx.config import CannotRunError
from longctx.console import notice
from longctx.interrupt import Terminated, sigterm_raises
from longctx.runner import Run
from longctx.shared_resources import SharedResources
from longctx.task import Task


@dataclass(frozen=True)
class Cell:
    """One run: the line it came from, its task, and the variables that it changes."""

    line: str
    task: Task
    changes: dict[str, str]


def read(lines: Iterable[str]) -> list[Cell]:
    """The cells of all lines that are not empty, each once. Raises CannotRunError."""
    cells = {}
    for line in filter(None, map(str.strip, lines)):
        script, *assignments = shlex.split(line)
        pairs = [assignment.partition("=") for assignment in assignments]
        if any(not equals or not name for name, equals, _ in pairs):
            raise CannotRunError(f"{line!r} is not a script and NAME=value, NAME=value, ...")
        module = ".".join(Path(script).with_suffix("").parts)
        try:
            task = importlib.import_module(module).TASK
        except (ImportError, AttributeError):
            raise CannotRunError(f"{script} is not an evaluation script here") from None
        cells[line] = Cell(line, task, {name: value for name, _, value in pairs})
    return list(cells.values())


def run(cell: Cell, supplies: SharedResources) -> str | None:
    """Run a cell; returns why it could not be done, None where it is."""
    try:
        settings = config.read(cell.task.settings, config.environment_with(cell.changes))
        one = Run(cell.task, *settings, supplies)
        one.execute()
    except CannotRunError as error:
        return str(error)
    except torch.AcceleratorError:
        raise  # the device does nothing more in this process
    except Exception as error:  # whatever is wrong with a cell, the others are run
        console.print_traceback()
        return f"{type(error).__name__}: {error}"
    return one.failure


def run_all(cells: list[Cell]) -> int:
    """Run all cells and say which are not done; returns the exit code."""
    supplies = SharedResources(keeps_prompts=True)
    not_done = []
    for number, cell in enumerate(cells, start=1):
        notice(f"{number} of {len(cells)}: {cell.line}")
        began = time.perf_counter()
        problem = run(cell, supplies)
        if problem is not None:
            not_done.append(f"not done: {cell.line}: {problem}")
            notice(not_done[-1])
        notice(f"{number} of {len(cells)} took {time.perf_counter() - began:.1f} s")
    notice(f"{len(cells) - len(not_done)} of {len(cells)} runs are done")
    for line in not_done:
        notice(line)
    return 1 if not_done else 0


def main() -> int:
    """Run what stdin says; returns the exit code."""
    config.guard()
    parser = argparse.ArgumentParser(
        prog="python -m longctx.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    try:
        with sigterm_raises():
            return run_all(read(sys.stdin))
    except CannotRunError as error:
        console.error(error)
        return 2
    except KeyboardInterrupt:
        return 130
    except Terminated:
        return 143


if __name__ == "__main__":
    sys.exit(main())
