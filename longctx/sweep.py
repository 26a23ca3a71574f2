"""Many runs of the evaluation scripts, and one table of them.

A grid, every value of a setting with every value of the others:

  python -m longctx.sweep narrativeqa_eval.py KV_MODE=l2,tova KEEP_RATIO=0.7,0.5

Commas stand between values. Where a setting is a list itself (CONTEXTS, SKIP_LAYERS) they belong to
the value, and semicolons stand between values: "CONTEXTS=512,1024;2048" are two. Runs that would
differ only in what has no effect, such as KEEP_RATIO beside KV_MODE=none, are one.

Without arguments each line of stdin is a run, a script and its settings, as they are:

  narrativeqa_eval.py ATTN_IMPL=sdpa KV_MODE=l2 KEEP_RATIO=0.5

Every run takes the environment's settings too; SKIP_DONE=1 leaves out what LOGDIR has the results
of. Runs share one process, in which model and prompts are made once; --isolate gives each its own.
The results are the same. A run that cannot be made is noted, and the next one begins.

Exit code 0: all are done; 1: some are not, or the device is lost; 2: a wrong argument or setting;
130 and 143: interrupted, with what is finished kept.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from longctx import (
    choice_tables,
    cli,
    config,
    console,
    isolated_runs,
    load_results,
)
from longctx.cells import Cell, Outcome, grid, read, task_of, written
from longctx.console import notice, stdout
from longctx.errors import CannotRunError

if TYPE_CHECKING:
    from longctx.shared_resources import SharedResources


def run_all(
    cells: Sequence[Cell],
    *,
    isolate: bool = False,
    timeout_s: float | None = None,
    gpus: Sequence[str | None] = (None,),
) -> int:
    """Run all cells, say which are not done, print the table; returns the exit code.

    timeout_s, gpus: of isolated runs: the limit of each, and on what they run side by side.
    """
    name = hashlib.sha256("\n".join(cell.line for cell in cells).encode()).hexdigest()[:8]
    config.set_if_unset("WANDB_RUN_GROUP", f"sweep-{name}")
    ended = isolated_runs.run(cells, timeout_s, gpus) if isolate else _in_this_process(cells)
    outcomes: dict[Cell, Outcome] = {}
    try:
        with closing(ended):
            for cell, outcome in ended:
                outcomes[cell] = outcome
                told = f"{cell.line} (after {outcome.seconds:.1f} s)"
                is_done = outcome.problem is None
                notice(f"done: {told}" if is_done else f"not done: {told}: {outcome.problem}")
    finally:
        n_done = sum(outcome.problem is None for outcome in outcomes.values())
        notice(f"{n_done} of {len(cells)} runs are done")
        print_tables(outcomes)
    return 0 if n_done == len(cells) else 1


def _in_this_process(cells: Sequence[Cell]) -> Generator[tuple[Cell, Outcome], None, None]:
    from longctx.shared_resources import SharedResources

    resources = SharedResources(keeps_prompts=True)
    for number, cell in enumerate(cells, start=1):
        notice(f"run {number} of {len(cells)}: {cell.line}")
        began = time.perf_counter()
        outcome = run(cell, resources)
        yield cell, replace(outcome, seconds=time.perf_counter() - began)


def run(cell: Cell, resources: "SharedResources") -> Outcome:
    """Run a cell in this process."""
    import torch

    from longctx.runner import Run

    task = task_of(cell.script)
    try:
        settings = config.read(task.settings, config.environment_with(cell.changes))
        one = Run(task, *settings, resources)
        one.execute()
    except CannotRunError as error:
        return Outcome(str(error))
    except torch.AcceleratorError:
        raise  # the device does nothing more in this process
    except Exception as error:  # whatever is wrong with a cell, the others are run
        console.print_traceback()
        return Outcome(f"{type(error).__name__}: {error}")
    return Outcome(one.failure, one.results_path)


def print_tables(outcomes: Mapping[Cell, Outcome]) -> None:
    """Of each script the table of what is pruned against the full cache, and what is not done.

    Runs that have no full cache to be compared with stand in a table of all runs, side by side,
    where a run's label is what of its variables is not the same in all runs of its script.
    """
    for script in dict.fromkeys(cell.script for cell in outcomes):
        mine = {cell: outcome for cell, outcome in outcomes.items() if cell.script == script}
        names = dict.fromkeys(name for cell in mine for name in cell.changes)
        same = [name for name in names if len({cell.changes.get(name) for cell in mine}) == 1]
        labels, runs, not_done = [], [], []
        for cell, outcome in mine.items():
            differing = {name: cell.changes[name] for name in cell.changes if name not in same}
            problem = outcome.problem
            try:
                if outcome.results is not None:
                    runs.append(_without_texts(load_results.read(outcome.results)))
                    labels.append(" ".join(differing.values()))
            except load_results.UnusableFileError as error:
                problem = f"{outcome.results} {error}"
            if problem is not None:
                not_done.append(
                    console.one_line(f"not done: {' '.join(written(differing))}: {problem}")
                )
        choice_tables.print_runs(runs, labels)
        if not_done:
            stdout.print("\n".join(not_done), markup=False, highlight=False)


def _without_texts(full: load_results.FullResults) -> load_results.FullResults:
    """Results without what is long in them, which would fill the memory after a large sweep."""
    for row in full["rows"]:
        for sample in row["samples"]:
            for name in ("prediction", "output", "question"):
                sample.pop(name, None)
    return full


def positive(text: str) -> float:
    """A number above 0, as argparse reads it."""
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def main() -> int:
    """Run what the arguments or stdin say; returns the exit code."""
    parser = cli.parser(__doc__, prog="python -m longctx.sweep")
    parser.add_argument("script", nargs="?", help="script of a grid; without it runs from stdin")
    parser.add_argument("assignments", nargs="*", metavar="NAME=a,b", help="values of a setting")
    parser.add_argument("--isolate", action="store_true", help="a fresh process for each run")
    parser.add_argument(
        "--timeout", type=positive, metavar="S", help="end an isolated run after so many seconds"
    )
    parser.add_argument(
        "--gpus", metavar="0,1", help="isolated runs side by side, one on each of these GPUs"
    )
    chosen = parser.parse_intermixed_args()  # options may stand between settings
    if not chosen.isolate and (chosen.timeout or chosen.gpus):
        parser.error("--timeout and --gpus need --isolate")
    if chosen.script is None and sys.stdin.isatty():
        parser.error("name a script and its settings, or write runs to stdin")
    with cli.exit_codes():
        cells = grid(chosen.script, chosen.assignments) if chosen.script else read(sys.stdin)
        gpus = chosen.gpus.split(",") if chosen.gpus else (None,)
        return run_all(cells, isolate=chosen.isolate, timeout_s=chosen.timeout, gpus=gpus)


if __name__ == "__main__":
    sys.exit(main())
