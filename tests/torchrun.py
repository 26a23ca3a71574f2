"""torchrun, whose processes are forks of it and need no start-up; itself one of tests/warm.py."""

import runpy
import sys

from torch.distributed import run
from torch.distributed.launcher.api import elastic_launch


def forked(config, entrypoint):
    """As elastic_launch, of a Python script's command line."""
    config.start_method = "fork"

    def launch(*arguments):
        (script,) = [argument for argument in arguments if argument.endswith(".py")]
        return elastic_launch(config, main)(script)

    return launch


def main(script):
    sys.argv = [script]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    run.elastic_launch = forked
    run.main()
