"""The study's sweeps: their lines, runs that share a process, and an interrupted one's end."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from kv_compression import attention, methods
from longctx import config, models, quantization, runner, sweep
from longctx.cells import Outcome, grid, read, task_of
from longctx.errors import CannotRunError
from longctx.shared_resources import SharedResources
from tests import runs, warm
from tests.runs import ROOT, environ, without_timings

SWEEPS = sorted(path.name for path in (ROOT / "studies").glob("[a-z]*.sh"))
CELLS = [
    f"narrativeqa_eval.py {changes}"
    for changes in ("KV_MODE=none", "KV_MODE=l2 KEEP_RATIO=0.5", "KV_MODE=window BATCH_SIZE=2")
]


@pytest.fixture(autouse=True)
def group(monkeypatch):
    """What a sweep sets in this process is gone after the test."""
    monkeypatch.setenv("WANDB_RUN_GROUP", "tests")


def lines_of(name, tmp_path, **variables):
    """What a sweep would run, and the environment it would run it in; nothing is run."""
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"print(json.dumps([sys.argv[1:], sys.stdin.read().splitlines(), dict(os.environ)]))\n"
    )
    python.chmod(0o755)
    ended = subprocess.run(
        ["bash", str(ROOT / "studies" / name)],
        env={"PATH": os.environ["PATH"], **variables, "PYTHON": str(python)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    arguments, lines, environment = json.loads(ended.stdout)
    assert arguments == ["-m", "longctx.sweep"]
    return lines, environment


@pytest.mark.parametrize("name", SWEEPS)
def test_each_line_of_a_sweep_can_be_read(name, tmp_path, capsys):
    lines, environment = lines_of(name, tmp_path, OMP_NUM_THREADS="1")
    cells = read(lines)
    assert len(cells) > 5
    assert {environment[name] for name in ("SKIP_DONE", "RESUME")} == {"1"}
    told = set()
    for cell in cells:
        task = task_of(cell.script)
        settings, found = config.read(task.settings, environment | cell.changes)
        assert set(cell.changes) <= found.is_set
        assert settings.logdir.startswith("logs/studies/")
        told.add((task.name, str(sorted(cell.changes.items()))))
    assert len(told) == len(cells)
    assert "is not a setting" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "variable", "package"),
    [
        ("kv", "KV_MODE", methods),
        ("quality", "KV_MODE", methods),
        ("attention", "ATTN_IMPL", attention),
        ("quantization", "QUANT_MODE", quantization),
    ],
)
def test_a_sweep_has_every_method_and_backend_there_is(name, variable, package, tmp_path):
    lines, _ = lines_of(f"{name}.sh", tmp_path)
    used = {cell.changes.get(variable, "none") for cell in read(lines)}
    assert used - {"none"} == set(package.names()) - {"none"}


@pytest.mark.parametrize("name", SWEEPS)
def test_help_says_what_a_sweep_does_and_starts_nothing(name):
    def ended(argument):
        return subprocess.run(
            ["bash", str(ROOT / "studies" / name), argument],
            env={"PATH": os.environ["PATH"], "PYTHON": "no-such-program"},
            capture_output=True,
            text=True,
            check=False,
        )

    helped = ended("--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    head = (ROOT / "studies" / name).read_text().splitlines()[1]
    assert helped.stdout.startswith(head.removeprefix("# "))
    assert re.search(r'^  LOGDIR="logs/studies"$', helped.stdout, re.M)
    assert all(len(line) < 110 for line in helped.stdout.splitlines())
    assert ended("BATCHES=1").returncode == 2


def test_a_sweep_honours_the_environment_and_paths_with_spaces(tmp_path):
    lines, environment = lines_of(
        "quality.sh", tmp_path, MODEL_ID="m", CONTEXTS="700", METHODS="l2", RATIOS="0.5",
        SCOPES="context", NARRATIVEQA="", HOTPOTQA="a.jsonl", LONGBENCH="", LOGDIR="a folder",
    )  # fmt: skip
    full, pruned = read(lines)
    assert (environment["MODEL_ID"], environment["ATTN_IMPL"]) == ("m", "sdpa")
    assert full.changes == {
        "DATASET_ID": "a.jsonl", "KV_SCOPE": "context", "CONTEXTS": "700",
        "LOGDIR": "a folder/quality/hotpotqa-a/context",
    }  # fmt: skip
    assert pruned.changes == full.changes | {
        "KV_MODE": "l2", "KEEP_RATIO": "0.5", "PRUNE_AFTER": "0",
    }  # fmt: skip
    lines, _ = lines_of("attention.sh", tmp_path, BATCHES="4", REQUESTS="3", BACKENDS="sdpa")
    cells = read(lines)
    assert [cell.changes["PREFILL"] for cell in cells] == ["whole", "layered"]
    assert {(c.changes["BATCH_SIZE"], c.changes["N_SAMPLES"]) for c in cells} == {("4", "12")}


@pytest.mark.parametrize("line", ["narrativeqa_eval.py KV_MODE", "tests/runs.py A=1", "no.py A=1"])
def test_a_line_that_is_no_run_is_refused(line, monkeypatch, capsys):
    with pytest.raises(CannotRunError):
        read([line])
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{line}\n"))
    monkeypatch.setattr(sys, "argv", ["sweep"])
    with pytest.raises(SystemExit, match="2"):
        sweep.main()
    assert capsys.readouterr().err.startswith("error: ")


def lines_of_grid(*assignments):
    return [cell.line.partition(" ")[2] for cell in grid("narrativeqa_eval.py", assignments)]


def test_a_grid_has_every_value_with_every_other_one():
    assert lines_of_grid("KV_MODE=l2,tova", "KEEP_RATIO=0.7,0.5") == [
        "KV_MODE=l2 KEEP_RATIO=0.7", "KV_MODE=l2 KEEP_RATIO=0.5",
        "KV_MODE=tova KEEP_RATIO=0.7", "KV_MODE=tova KEEP_RATIO=0.5",
    ]  # fmt: skip


def test_commas_of_lists_and_of_what_is_no_setting_are_part_of_the_value():
    assert lines_of_grid("CONTEXTS=512,1024") == ["CONTEXTS=512,1024"]
    assert lines_of_grid("CONTEXTS=512,1024;2048") == ["CONTEXTS=512,1024", "CONTEXTS=2048"]
    assert lines_of_grid("KV_MODE=l2", "SKIP_LAYERS=;0,1") == [
        "KV_MODE=l2 SKIP_LAYERS=", "KV_MODE=l2 SKIP_LAYERS=0,1",
    ]  # fmt: skip
    assert lines_of_grid("CUDA_VISIBLE_DEVICES=0,1") == ["CUDA_VISIBLE_DEVICES=0,1"]
    assert lines_of_grid("MODEL_ID=a,b;c") == ["MODEL_ID=a,b", "MODEL_ID=c"]


def test_runs_that_differ_in_nothing_that_has_an_effect_are_one(monkeypatch):
    axes = ("KV_MODE=none,l2,snapkv", "KEEP_RATIO=0.7,0.5", "SNAPKV_WINDOW=32,64")
    assert len(lines_of_grid(*axes)) == 1 + 2 + 4
    monkeypatch.setenv("KV_MODE", "l2")
    assert lines_of_grid("KEEP_RATIO=0.7,0.5") == ["KEEP_RATIO=0.7", "KEEP_RATIO=0.5"]


def test_all_that_is_wrong_with_a_grid_is_told_at_once(monkeypatch, capsys):
    arguments = ["narrativeqa_eval.py", "KV_MODE=l2,l3", "KEEP_RATO=0.5", "SEED=1,1", "SEED=x"]
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
    with pytest.raises(SystemExit, match="2"):
        sweep.main()
    errors = capsys.readouterr().err.splitlines()
    assert [error.split(": ")[1] for error in errors] == [
        "KV_MODE=l3", "KEEP_RATO=0.5", "SEED=1,1", "SEED=x", "SEED=x",
    ]  # fmt: skip
    assert "did you mean KEEP_RATIO?" in errors[1]


def test_a_run_of_failures_alone_is_not_done(monkeypatch, capsys):
    class Failed:
        failure = "4 of 4 requests failed; the first: ValueError: x"
        results_path = None

        def __init__(self, *_):
            pass

        def execute(self):
            pass

    monkeypatch.setattr(runner, "Run", Failed)
    assert sweep.run_all(read(CELLS[:1])) == 1
    printed = capsys.readouterr()
    assert f"not done: {CELLS[0]} (after" in printed.err
    assert Failed.failure in " ".join(printed.out.split())


def test_runs_of_a_sweep_are_one_group(monkeypatch):
    monkeypatch.setattr(sweep, "run", lambda *_: Outcome(None))
    groups = set()
    for lines in (CELLS, CELLS, CELLS[:1]):
        monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
        sweep.run_all(read(lines))
        groups.add(os.environ["WANDB_RUN_GROUP"])
    assert len(groups) == 2
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    sweep.run_all(read(CELLS))
    assert os.environ["WANDB_RUN_GROUP"] == "mine"


@pytest.mark.model
def test_runs_of_one_process_are_those_of_their_own(tiny_folder, tmp_path, monkeypatch, capsys):
    loaded, load = [], models.load
    monkeypatch.setattr(models, "load", lambda *args: loaded.append(args) or load(*args))
    for name, value in environ(tiny_folder, tmp_path / "together").items():
        monkeypatch.setenv(name, value)
    bad = "narrativeqa_eval.py ATTN_IMPL=flash2 DEVICE_MAP=cpu"
    assert sweep.run_all(read([CELLS[0], bad, *CELLS[1:]])) == 1
    assert len(loaded) == 1
    printed = capsys.readouterr()
    assert re.search(rf"note: not done: {bad} \(after [\d.]+ s\): ATTN_IMPL=flash2: ", printed.err)
    assert "3 of 4 runs are done" in printed.err
    assert "not done: ATTN_IMPL=flash2 DEVICE_MAP=cpu: " in " ".join(printed.out.split())
    together = sorted((tmp_path / "together").glob("*_full.json"), key=os.path.getmtime)
    for path, line in zip(together, CELLS, strict=True):
        (cell,) = read([line])
        alone = runs.run(tiny_folder, tmp_path / "alone", **cell.changes)
        found = json.loads(path.read_text())
        for full in (found, alone):
            del full["run_meta"]["variables"]["LOGDIR"], full["run_meta"]["command"]
        assert without_timings(found) == without_timings(alone)


@pytest.mark.model
def test_samples_and_models_are_shared_only_where_they_are_the_same(tiny_folder, tmp_path):
    shared = SharedResources(keeps_prompts=True)

    def made(**changes):
        values = environ(tiny_folder, tmp_path, N_SAMPLES="2", CONTEXTS="200", **changes)
        task = task_of("narrativeqa_eval.py")
        settings, environment = config.read(task.settings, values)
        source = shared.source(settings)
        builder = shared.builder(task, settings, source)
        samples = shared.samples(task, settings, builder)
        model, _ = shared.model(settings, source, environment.quantization(settings.quant_mode))
        prompt = builder.build(samples[200][0].parts, 200, settings.truncate)
        return samples, model, prompt

    first = made()
    assert all(a is b for a, b in zip(first, made(KV_MODE="l2", BATCH_SIZE="2"), strict=True))
    other = made(SEED="1")
    assert other[0] != first[0]
    assert other[1] is first[1]
    assert made(TRUNCATE="head")[2] is not first[2]
    assert made(DTYPE="bfloat16")[1] is not first[1]


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "lists", "runs_in_all"),
    [
        ("attention", {"PREFILLS": "whole layered", "BACKENDS": "sdpa eager"}, 4),
        ("kv", {"PARTS": "methods", "SCOPES": "prompt", "METHODS": "l2 window"}, 3),
        ("quantization", {"QUANTIZATIONS": "none"}, 4),
        ("combined", {"QUANTIZATIONS": "none"}, 2),
        ("quality", {"SCOPES": "context", "METHODS": "l2 window", "NARRATIVEQA": "synthetic"}, 3),
    ],
)
def test_an_interrupted_sweep_ends_complete(
    tiny_folder, tmp_path, monkeypatch, capsys, name, lists, runs_in_all
):
    settings = environ(tiny_folder, tmp_path, N_SAMPLES="12", BATCH_SIZE="1", PRUNE_AFTER="0")
    settings |= {"PYTHON": sys.executable, "BATCHES": "1", "HOTPOTQA": "", "LONGBENCH": ""}
    # Quality sweeps have the full cache in any case.
    settings |= {"RATIOS": "0.5" if name == "quality" else "1.0 0.5"} | lists

    lines, environment = lines_of(f"{name}.sh", tmp_path, **settings)
    (tmp_path / "lines").write_text("\n".join(lines))
    if name == "kv":
        process = subprocess.Popen(
            ["bash", str(ROOT / "studies" / f"{name}.sh")],
            env=os.environ | {"PYTHONWARNINGS": "ignore"} | settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    else:
        # As the script would start it, which takes longer than its runs.
        process = warm.Process(
            tmp_path / "streams",
            ["-m", "longctx.sweep"],
            environment,
            cwd=ROOT,
            stdin=tmp_path / "lines",
        )
    while not (list(tmp_path.rglob("*_full.json")) and list(tmp_path.rglob("*_rows.jsonl"))):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    _, notes = process.communicate(timeout=60)
    assert process.returncode == 130, notes
    before = set(tmp_path.rglob("*_full.json"))
    assert 1 <= len(before) < runs_in_all
    # The second time in this process.
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert sweep.run_all(read(lines)) == 0
    notes = capsys.readouterr().err
    assert notes.count("SKIP_DONE: these settings have their results") == len(before)
    assert f"{runs_in_all} of {runs_in_all} runs are done" in notes
    assert not list(tmp_path.rglob("*_rows.jsonl"))
    assert len(list(tmp_path.rglob("*_full.json"))) == runs_in_all
