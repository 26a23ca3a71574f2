"""Command lines; a script's answers help and wrong settings before torch is imported."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from longctx import cells, config, console, settings_help
from longctx.errors import CannotRunError
from longctx.interrupt import Terminated, sigterm_raises

if TYPE_CHECKING:
    from longctx.task import Task


def parser(description: str | None, **options: Any) -> argparse.ArgumentParser:
    """A command's parser; from here on what the process prints is plain text without secrets."""
    config.guard()
    return argparse.ArgumentParser(
        description=description, formatter_class=console.HelpFormatter, **options
    )


@contextmanager
def exit_codes() -> Iterator[None]:
    """End the process with 2 for what cannot run, told on stderr, 130 at Ctrl-C, 143 at SIGTERM."""
    try:
        with sigterm_raises():
            yield
    except CannotRunError as error:
        console.error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Terminated:
        sys.exit(143)


def main(task: "Task", description: str, environ: Mapping[str, str] | None = None) -> None:
    """Run `task` as the environment says.

    Exit codes: those of `exit_codes`, and 1 when every request failed or results cannot be written
    any more. An interrupted run keeps all finished requests.
    """
    parser(
        description,
        usage="NAME=value ... python %(prog)s [-h]",
        epilog=f"{_examples(task)}\n\n{settings_help.help_text(task.settings)}",
    ).parse_args()
    with exit_codes():
        environ = config.environment_with({}) if environ is None else environ
        environments = cells.environments(task.settings, environ)
        read = [config.read(task.settings, each) for each in environments]
        from longctx.runner import Run  # takes seconds

        if len(read) > 1:
            from longctx import together

            runs = together.run_all(task, read)
        else:
            runs = [Run(task, *read[0])]
            runs[0].execute()
    failures = {run.failure for run in runs if run.failure is not None and run.workers.is_first}
    for failure in failures:
        console.error(failure)
    if any(run.failure is not None for run in runs):
        sys.exit(1)


def _examples(task: "Task") -> str:
    """Two commands; the first one needs neither a GPU nor a network."""
    script = task.script or f"{task.name}_eval.py"
    # A script with a backend of its own, such as a mask's, need not take every setting.
    second = "KV_MODE=l2 KEEP_RATIO=0.5" if task.attention is None else "QUANT_MODE=bnb4"
    return (
        f" examples:\n"
        f"  MODEL_ID=smollm2-135m DATASET_ID=synthetic N_SAMPLES=4 CONTEXTS=512 \\\n"
        f"      python {script}\n"
        f"  {second} N_SAMPLES=20 python {script}"
    )
