"""The command line of a script: help and wrong settings are answered before torch is imported."""

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from longctx import config, console, settings_help
from longctx.errors import CannotRunError
from longctx.interrupt import Terminated, sigterm_raises

if TYPE_CHECKING:
    from longctx.task import Task


def main(task: "Task", description: str, environ: Mapping[str, str] | None = None) -> None:
    """Run `task` as the environment says.

    Exit code 2 for a setting that cannot be used, 1 when every request failed or results cannot be
    written any more, 130 after Ctrl-C and 143 after SIGTERM, with all finished requests kept.
    """
    config.guard()
    parser = argparse.ArgumentParser(
        usage="NAME=value ... python %(prog)s [-h]",
        description=description,
        epilog=f"{_examples(task)}\n\n{settings_help.help_text(task.settings)}",
        formatter_class=console.HelpFormatter,
    )
    parser.parse_args()
    try:
        with sigterm_raises():
            settings, environment = config.read(task.settings, environ)
            from longctx.runner import Run  # takes seconds

            run = Run(task, settings, environment)
            run.execute()
    except CannotRunError as error:
        console.error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Terminated:
        sys.exit(143)
    if run.failure is not None:
        if run.workers.is_first:
            console.error(run.failure)
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
