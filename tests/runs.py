"""Whole runs on the tiny model, for tests of the harness."""

import os
from pathlib import Path

import narrativeqa_eval
from longctx import config, runner
from tests import warm

ROOT = Path(__file__).parents[1]
TIMINGS = ("_ms", "_per_s", "ms_per_token", "load_s", "wall_s", "run_id", "latency")


def environ(tiny_folder, logdir, **changes):
    """Settings of a run of a second or two; None unsets one."""
    settings = {
        "MODEL_ID": str(tiny_folder),
        "DATASET_ID": "synthetic",
        "ATTN_IMPL": "sdpa",
        "DTYPE": "float32",
        "N_SAMPLES": "5",
        "CONTEXTS": "200,300",
        "MAX_NEW_TOKENS": "6",
        "WANDB_MODE": "disabled",
        "CHAT_TEMPLATE": "off",
        "LOGDIR": str(logdir),
    } | changes
    return {name: value for name, value in settings.items() if value is not None}


def run(tiny_folder, logdir, script=narrativeqa_eval, **changes):
    """Full results of a run in this process."""
    values = environ(tiny_folder, logdir, **changes)
    return runner.Run(script.TASK, *config.read(script.TASK.settings, values)).execute()


def fork(tiny_folder, logdir, script="narrativeqa_eval.py", launcher=(), **changes):
    """The process of a run of its own, already warm.

    launcher: arguments of torchrun, whose processes are as warm.
    """
    arguments = ["tests/torchrun.py", *launcher, script] if launcher else [script]
    variables = {"PYTHONWARNINGS": "ignore"} | environ(tiny_folder, logdir, **changes)
    folder = logdir.parent / f"{logdir.name}-streams-{os.urandom(4).hex()}"
    return warm.Process(folder, arguments, variables, cwd=ROOT)


def without_timings(value):
    """Results without what differs from run to run."""
    if isinstance(value, dict):
        return {
            key: without_timings(item)
            for key, item in value.items()
            if not any(word in key for word in TIMINGS)
        }
    if isinstance(value, list):
        return [without_timings(item) for item in value]
    return value
