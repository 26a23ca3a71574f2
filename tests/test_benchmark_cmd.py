"""Runs in processes of their own: results, a failing one, a hanging one, GPUs, interrupts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flex_pipeline import benchmark_cmd
from longctx import isolated_runs, sweep
from longctx.cells import Cell
from tests.runs import ROOT
from tests.saved_runs import full_results

COMMAND = [sys.executable, str(ROOT / "flex_pipeline" / "benchmark_cmd.py")]

# Stands for an evaluation script: as quick as a process can be.
SCRIPT = """
import json, os, subprocess, sys, time
from pathlib import Path

if __name__ != "__main__":
    from types import SimpleNamespace
    from longctx.settings import Settings
    TASK = SimpleNamespace(settings=Settings)
else:
    folder, seed = Path(os.environ["LOGDIR"]), os.environ["SEED"]
    folder.mkdir(parents=True, exist_ok=True)
    if seed == "13":
        print("loading\\nerror: SEED=13: brings bad luck", file=sys.stderr)
        sys.exit(2)
    if seed == "99":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (folder / "child").write_text(str(child.pid))
        time.sleep(600)
    if seed == "7":
        sys.exit(0)
    path = folder / f"run {seed}_full.json"
    if path.exists() and os.environ.get("SKIP_DONE"):
        print(f"note: SKIP_DONE: these settings have their results in {path}", file=sys.stderr)
        sys.exit(0)
    full = json.loads(Path("full.json").read_text())
    full["ctx_summaries"][0]["ttft_ms_p50"] = 1000.5 + float(seed)
    full["environ"] = dict(os.environ)
    path.write_text(json.dumps(full))
    print(f"TTFT 1 ms\\n  {path}")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Holds the stand-in, and is where commands are given."""
    (tmp_path / "stand_in.py").write_text(SCRIPT)
    (tmp_path / "full.json").write_text(json.dumps(full_results([0.5])))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    monkeypatch.delitem(sys.modules, "stand_in", raising=False)
    return tmp_path


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command in this process: its exit code, stdout and stderr."""

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", ["x.py", *arguments])
        try:
            code = module.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def bench(folder, command):
    """The command on the stand-in."""
    arguments = ["--script", "stand_in.py", "--logdir", "logs"]
    return lambda *more: command(benchmark_cmd, *arguments, *more)


def written(folder):
    return {path.name[4:-10]: json.loads(path.read_text()) for path in folder.rglob("*_full.json")}


def has_ended(pid):
    """Whether it ends within ten seconds: a signal that was sent need not have arrived."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.model
def test_a_grid_with_a_failing_and_a_hanging_run(folder, bench):
    arguments = ("--set", "N_SAMPLES=2", "--grid", "SEED=1,13,99,7", "--timeout-s", "2")
    code, table, notes = bench(*arguments)
    assert code == 1, notes
    assert "1 of 4 runs are done" in notes
    # The whole process group is gone, not the first process alone.
    assert has_ended((folder / "logs" / "child").read_text())
    # Every run is in the table, with its figures or its reason; what is equal in all is not.
    assert "1,001.5" in table
    for reason in (
        "SEED=13: exit code 2: error: SEED=13: brings bad luck",
        "SEED=99: ended after 2 s",
        "SEED=7: it named no results",
    ):
        assert f"not done: {reason}" in " ".join(table.split())
    assert "N_SAMPLES" not in table
    # What is done is not done again.
    code, table, notes = bench("--grid", "SEED=1", "--set", "N_SAMPLES=2")
    assert code == 0
    assert "SKIP_DONE" in notes
    assert "1,001.5" in table


def test_lists_gpus_and_the_environment(folder, bench, monkeypatch):
    monkeypatch.setenv("KEEP_RATIO", "0.3")
    (folder / "cells.jsonl").write_text('{"SEED": 1, "SKIP_LAYERS": [0, 1]}\n{"SEED": 2}\n')
    more = ["--gpus", "3,5", "--set", "SPLIT=x", "--set", "KV_MODE=l2"]
    code, _, notes = bench("--list", "cells.jsonl", *more)
    assert code == 0, notes
    environs = {seed: full["environ"] for seed, full in written(folder).items()}
    assert {mine["CUDA_VISIBLE_DEVICES"] for mine in environs.values()} == {"3", "5"}
    assert environs["1"]["SKIP_LAYERS"] == "0,1"
    for mine in environs.values():
        shared = {"KEEP_RATIO": "0.3", "SPLIT": "x", "KV_MODE": "l2", "WANDB_RUN_GROUP": "mine"}
        assert mine.items() >= shared.items()
    assert "[GPU 3] TTFT 1 ms" in notes


def test_a_sweep_isolates_its_runs(folder, command, monkeypatch):
    monkeypatch.setenv("LOGDIR", "logs")
    code, table, notes = command(sweep, "stand_in.py", "--isolate", "SEED=1,2", "--timeout", "60")
    assert code == 0, notes
    assert set(written(folder)) == {"1", "2"}
    assert "1,001.5" in table
    assert "1,002.5" in table
    code, _, notes = command(sweep, "stand_in.py", "SEED=1", "--gpus", "0")
    assert code == 2
    assert "need --isolate" in notes


@pytest.mark.model
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_is_done_and_ends_what_runs(folder, number):
    logs = folder / "logs"
    process = subprocess.Popen(
        [*COMMAND, "--script", "stand_in.py", "--grid", "SEED=1,99,2", "--logdir", str(logs)],
        env={"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (logs / "child").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert has_ended((logs / "child").read_text())
    assert set(written(folder)) == {"1"}
    assert "1,001.5" in output


def test_closing_the_runs_ends_what_runs(folder):
    cell = Cell("stand_in.py", {"SEED": "1", "LOGDIR": "logs"})
    hanging = Cell("stand_in.py", {"SEED": "99", "LOGDIR": "logs"})
    ended = isolated_runs.run([cell, hanging], None, ["0", "1"])
    assert next(ended)[1].problem is None
    while not (folder / "logs" / "child").exists():
        time.sleep(0.05)
    ended.close()
    assert has_ended((folder / "logs" / "child").read_text())


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--grid", "seed=1"], "not of the form NAME=value"),
        (["--grid", "SEED=1,1"], "twice"),
        (["--grid", "SEED=1", "--grid", "SEED=2"], "twice"),
        (["--grid", "SEED=1,x"], "valid integer"),
        (["--timeout-s", "0"], "not above 0"),
        (["--list", "missing.json"], "missing.json"),
        (["--script", "missing.py"], "there is no missing.py"),
    ],
)
def test_wrong_arguments_are_refused(bench, arguments, problem):
    code, _, notes = bench(*arguments)
    assert code == 2
    assert problem in notes.splitlines()[-1]


@pytest.mark.model
def test_real_runs_from_another_folder(tiny_folder, tmp_path):
    variables = {
        "MODEL_ID": tiny_folder, "DATASET_ID": "synthetic", "N_SAMPLES": 1, "CONTEXTS": 300,
        "MAX_NEW_TOKENS": 3, "WANDB_MODE": "disabled", "DTYPE": "float32",
    }  # fmt: skip
    arguments = [f"--set={name}={value}" for name, value in variables.items()]
    arguments += ["--script", "flex_pipeline/hotpot_qa_flex.py", "--logdir", str(tmp_path)]
    done = subprocess.run(
        [*COMMAND, *arguments, "--grid", "MASK_TYPE=causal,prefix"],
        cwd=ROOT / "flex_pipeline",
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*_full.json"))) == 2
    assert "blocks skipped" in done.stdout
