"""Grids as commands: results, a failing cell, a hanging one, skipping, interrupts, arguments."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flex_pipeline import benchmark_cmd

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, str(ROOT / "flex_pipeline" / "benchmark_cmd.py")]

# Stands for an evaluation script: as quick as a process can be.
SCRIPT = """
import json, os, subprocess, sys, time
from pathlib import Path

folder = Path(os.environ["LOGDIR"])
(folder / "starts").open("a").write("x")
if os.environ.get("SEED") == "13":
    print("loading\\nerror: SEED=13: brings bad luck", file=sys.stderr)
    sys.exit(2)
if os.environ.get("SEED") == "99":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "child").write_text(str(child.pid))
    time.sleep(600)
if os.environ.get("SEED") == "7":
    sys.exit(0)
summary = {
    "context_tokens": 1024, "n_oom": 0, "total_count": 2, "em": 0.5, "em_ci95": [0.0, 1.0],
    "ttft_ms_p50": 1000.5 + float(os.environ["SEED"]), "answered_pct": None,
    "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "inherited": os.environ.get("KEEP_RATIO"),
}
full = {"run_meta": {"score_names": ["em"]}, "ctx_summaries": [summary], "rows": []}
(folder / "run_full.json").write_text(json.dumps(full))
print("TTFT 1 ms")
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command in this process: its exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark_cmd.py", *arguments])
        before = signal.getsignal(signal.SIGTERM)
        try:
            code = benchmark_cmd.main()
        except SystemExit as stop:
            code = stop.code
        finally:
            signal.signal(signal.SIGTERM, before)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def bench(script, command):
    """The command on the stand-in."""

    def run(*arguments):
        logdir = str(script.parent / "logs")
        return command("--script", str(script), *arguments, "--logdir", logdir)

    return run


def grid_of(script):
    entries = json.loads((script.parent / "logs" / "grid.json").read_text())
    return {tuple(entry["variables"].values()): entry for entry in entries}


def is_alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except FileNotFoundError:
        return False


def test_a_grid_with_a_failing_and_a_hanging_cell(script, bench):
    arguments = (
        "--set", "N_SAMPLES=2", "--grid", "SEED=1,13,99", "--grid", "CONTEXTS=512,1024;2048",
        "--timeout-s", "2",
    )  # fmt: skip
    code, table, notes = bench(*arguments)
    assert code == 1, notes
    grid = grid_of(script)
    assert len(grid) == 6
    statuses = {key[1:]: entry["status"] for key, entry in grid.items()}
    assert statuses == {
        (seed, contexts): status
        for seed, status in {"1": "done", "13": "failed", "99": "hung"}.items()
        for contexts in ("512,1024", "2048")
    }
    failed, hung = grid["2", "13", "2048"], grid["2", "99", "2048"]
    assert failed["reason"] == "exit code 2: error: SEED=13: brings bad luck"
    assert failed["stderr_tail"] == ["loading", "error: SEED=13: brings bad luck"]
    assert hung["reason"] == "ended after 2 s"
    assert 2 <= hung["wall_s"] < 30
    # The whole process group is gone, not the first process alone.
    logs = script.parent / "logs"
    assert not is_alive((logs / hung["folder"] / "child").read_text())
    # Every cell is in the table, with its figures or its reason; what is equal in all is not.
    assert table.count("1,001.5") == 2
    assert table.count("0.500 [0.000, 1.000]") == 2
    assert table.count("failed: exit code 2") == table.count("hung: ended") == 2
    assert "N_SAMPLES" not in table
    assert "answered" not in table

    code, table, notes = bench(*arguments)
    assert code == 1
    assert notes.count("done before") == 2
    starts = {
        key[1:]: (logs / entry["folder"] / "starts").read_text() for key, entry in grid.items()
    }
    assert starts == {key: "x" if key[0] == "1" else "xx" for key in statuses}
    assert table.count("1,001.5") == 2

    # The same settings said in another way.
    code, _, notes = bench("--set", "CONTEXTS=2048", "--grid", "SEED=1", "--set", "N_SAMPLES=2")
    assert code == 0
    assert "done before" in notes


def test_exit_code_0_without_a_result_is_a_failure(script, bench):
    code, _, _ = bench("--set", "SEED=7")
    assert code == 1
    assert grid_of(script)[("7",)]["reason"] == "wrote no *_full.json into LOGDIR"


def test_a_result_that_is_gone_is_made_again(script, bench):
    assert bench("--set", "SEED=1")[0] == 0
    entry = grid_of(script)[("1",)]
    (script.parent / "logs" / entry["folder"] / entry["result"]).unlink()
    code, _, notes = bench("--set", "SEED=1")
    assert code == 0
    assert "done before" not in notes


def test_a_list_of_settings_each_gpu_its_own_cell(script, bench):
    path = script.parent / "cells.jsonl"
    path.write_text('{"SEED": 1, "SKIP_LAYERS": [0, 1]}\n{"SEED": 2, "USE_SUMMARY": true}\n')
    code, _, notes = bench("--list", str(path), "--gpus", "3,5", "--set", "SPLIT=x")
    assert code == 0, notes
    grid = grid_of(script)
    assert set(grid) == {("x", "1", "0,1"), ("x", "2", "true")}
    used = set()
    for entry in grid.values():
        folder = script.parent / "logs" / entry["folder"]
        used.add(json.loads((folder / entry["result"]).read_text())["ctx_summaries"][0]["gpu"])
    assert used == {"3", "5"}


def test_settings_come_from_the_command_line_alone(script, bench, monkeypatch):
    monkeypatch.setenv("KEEP_RATIO", "0.3")
    _, _, notes = bench("--set", "SEED=1")
    assert "KEEP_RATIO=0.3 of the environment is not passed on" in notes
    (entry,) = grid_of(script).values()
    full = json.loads((script.parent / "logs" / entry["folder"] / entry["result"]).read_text())
    assert full["ctx_summaries"][0]["inherited"] is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_is_done_and_ends_what_runs(script, number):
    logs = script.parent / "logs"
    process = subprocess.Popen(
        [*COMMAND, "--script", str(script), "--grid", "SEED=1,99,2", "--logdir", str(logs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(logs.glob("*/child")) and time.monotonic() < deadline:
        time.sleep(0.05)
    (child,) = logs.glob("*/child")
    time.sleep(0.2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert not is_alive(child.read_text())
    assert {key: entry["status"] for key, entry in grid_of(script).items()} == {("1",): "done"}
    assert "1,001.5" in output


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--grid", "seed=1"], "not of the form NAME=value"),
        (["--set", "LOGDIR=x"], "use --logdir"),
        (["--grid", "SEED=1,1"], "names a value twice"),
        (["--grid", "SEED=1", "--grid", "SEED=2"], "names a variable twice"),
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
def test_real_cells_from_the_projects_root_and_from_the_folder(
    tiny_folder, tmp_path, command, monkeypatch
):
    variables = {
        "MODEL_ID": tiny_folder, "DATASET_ID": "synthetic", "N_SAMPLES": 1, "CONTEXTS": 300,
        "MAX_NEW_TOKENS": 3, "WANDB_MODE": "disabled", "DTYPE": "float32",
    }  # fmt: skip
    arguments = [f"--set={name}={value}" for name, value in variables.items()]
    arguments += ["--script", "flex_pipeline/hotpot_qa_flex.py", "--logdir", str(tmp_path)]

    def check(code, table, notes, masks):
        assert code == 0, notes
        assert notes.count("done before") == len(masks) - 1
        grid = json.loads((tmp_path / "grid.json").read_text())
        assert [entry["status"] for entry in grid] == ["done"] * len(masks)
        assert "blocks skipped" in table

    monkeypatch.chdir(ROOT)
    check(*command(*arguments, "--grid", "MASK_TYPE=causal"), ["causal"])
    done = subprocess.run(
        [*COMMAND, *arguments, "--grid", "MASK_TYPE=causal,prefix"],
        cwd=ROOT / "flex_pipeline",
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    check(done.returncode, done.stdout, done.stderr, ["causal", "prefix"])
