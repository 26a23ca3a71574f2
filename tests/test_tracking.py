import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from longctx import redaction, tracking
from longctx.settings import Settings
from longctx.tracking import Tracker

ROOT = Path(__file__).parents[1]
META = {"run_id": "a-run", "tags": ["model", "sdpa"], "variables": {"KEEP_RATIO": 0.5}}
SUMMARY = {"context_tokens": 512, "meteor": 0.25, "ttft_ms_p50": 12.5, "tok_per_s_p50": 8.0,
           "peak_gpu_mem_gb_p95": None, "meteor_by_kind": {"sad": {"n": 1, "meteor": 0.5}},
           "kv_cache_gb": 0.5, "kernel_prefill": "math", "n_asked": 4, "n_failed_samples": 3,
           "meteor_failures_as_0": 0.0625, "question_ttft_ms_p50": 2.5,
           "setup_ms_p50": 1.5}  # fmt: skip
# The second request has two samples.
ROWS = [
    {"run_id": "a-run", "context_tokens": 512, "success": False, "samples": []},
    {
        "run_id": "a-run",
        "context_tokens": 512,
        "ttft_ms": 12.5,
        "stored_tokens_per_layer": [8],
        "samples": [
            {
                "sample_id": f"s{n}",
                "question": "Who?",
                "prompt": "Read.",
                "prediction": "Bob",
                "references": ["Bob"],
                "choice_log_probs": {},
                "meteor": 0.25 * n,
            }
            for n in range(2)
        ],
    },
]


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def track(mode):
    tracker = Tracker(Settings(wandb_mode=mode), META, ["meteor"])
    tracker.context(SUMMARY)
    tracker.finish(ROWS, {"run_id": "a-run"})


def logged(monkeypatch, summary):
    """What a context length sends to W&B."""
    fake = Wandb("", block)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    Tracker(Settings(wandb_mode="offline"), META, ["meteor"]).context(summary)
    (values,) = (args[0] for name, args, _ in fake.calls if name == "log")
    return values


def test_disabled_writes_nothing(in_tmp_path):
    track("disabled")
    assert list(in_tmp_path.iterdir()) == []


@pytest.mark.model
def test_without_credentials_it_says_so_once_and_goes_on(in_tmp_path, capfd):
    track("online")
    notes = [line for line in capfd.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "no W&B" in notes[0]


class Wandb:
    """A module that does `fault` at the call named `at`, and notes the calls that it got."""

    def __init__(self, at, fault):
        self.at, self.fault, self.calls = at, fault, []

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            if name == self.at:
                self.fault()
            return self

        return self if name == "summary" else call


def block():
    threading.Event().wait()


def fails_with(error):
    def fail():
        raise error

    return fail


class UnspeakableError(Exception):
    def __str__(self):
        raise RuntimeError("cannot say")


FAULTS = {
    "an error": (fails_with(ValueError("broken\x1b[2J\nnote: forged")), "broken"),
    "an exit": (fails_with(SystemExit(3)), "(3)"),
    "an interrupt of its own": (fails_with(KeyboardInterrupt()), "KeyboardInterrupt"),
    "an import": (fails_with(ImportError("no module x")), "no module x"),
    "an error without words": (fails_with(UnspeakableError()), "UnspeakableError"),
    "a call that never returns": (block, "no answer within 0.1 s"),
}
CALLS = ["Settings", "init", "define_metric", "log", "Table", "add_data", "update", "finish"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("at", CALLS)
def test_whatever_wandb_does_is_one_note(at, fault, monkeypatch, capsys):
    raised, said = FAULTS[fault]
    for name in ("_START_LIMIT_S", "_LOG_LIMIT_S", "_FINISH_LIMIT_S"):
        monkeypatch.setattr(tracking, name, 0.1 if raised is block else 30)
    monkeypatch.setitem(sys.modules, "wandb", Wandb(at, raised))
    track("offline")
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("note: no W&B" if at in CALLS[:3] else "note: W&B failed")
    assert said in note
    assert "\x1b" not in note


def test_closing_an_interrupted_run_has_its_limit(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", Wandb("finish", block))
    monkeypatch.setattr(tracking, "_LOG_LIMIT_S", 0.1)
    Tracker(Settings(wandb_mode="offline"), META, ["meteor"]).interrupted()
    assert "W&B failed (no answer within 0.1 s)" in capsys.readouterr().err


def test_a_further_run_of_a_process_does_not_wait_again(monkeypatch, capsys):
    monkeypatch.setattr(tracking, "_START_LIMIT_S", 0.1)
    monkeypatch.setattr(tracking, "_SLOW_S", 0.05)
    fake = Wandb("init", block)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    track("offline")
    track("offline")
    assert [name for name, *_ in fake.calls].count("init") == 1
    assert "did not answer before" in capsys.readouterr().err


def test_w_and_b_gets_no_secret(monkeypatch):
    fake = Wandb("", block)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    redaction.remember({"PGPASSWORD": "correct horse"})
    meta = META | {"variables": {"MODEL_ID": "x-correct horse"}}
    tracker = Tracker(Settings(wandb_mode="offline"), meta, ["meteor"])
    tracker.finish(
        [{"error": "at correct horse", "n": 1, "samples": []}], {"text": "correct horse"}
    )
    assert "correct horse" not in str(fake.calls)
    assert ("add_data", ("at ***", 1), {}) in fake.calls
    redaction.remember({})


HANGS = """
import atexit, threading
block = threading.Event().wait
def never(): block()
never.__module__ = "wandb.sdk"
class Settings:
    def __init__(self, **values): pass
class Run:
    def define_metric(self, *a, **k): pass
    def log(self, figures): block()
def init(**values):
    atexit.register(never)
    return Run()
"""


@pytest.mark.model
def test_a_process_ends_although_wandb_never_would(in_tmp_path):
    (in_tmp_path / "wandb.py").write_text(HANGS)
    code = (
        "from longctx import tracking; tracking._LOG_LIMIT_S = 0.1;"
        "from tests.test_tracking import track; track('offline')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{in_tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "W&B failed (no answer within 0.1 s)" in done.stderr


def test_without_the_package_it_says_so_and_goes_on(in_tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    track("online")
    assert "wandb is not installed" in capsys.readouterr().err


@pytest.mark.model
def test_offline_keeps_figures_under_their_groups(in_tmp_path):
    # In a process of its own: wandb remembers the folder it was first used in.
    subprocess.run(
        [sys.executable, "-c", "from tests.test_tracking import track; track('offline')"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "WANDB_RUN_GROUP": "sweep-7"},
        check=True,
    )
    (run,) = in_tmp_path.glob("wandb/offline-run-*")
    stored = next(run.glob("*.wandb")).read_bytes()
    for name in (b"latency/ttft_ms_p50", b"quality/meteor", b"memory/kv_cache_gb",
                 b"quality/meteor_by_kind/sad", b"quality/meteor_failures_as_0",
                 b"samples/n_asked", b"samples/n_failed_samples", b"latency/question_ttft_ms_p50",
                 b"latency/setup_ms_p50",
                 b"throughput/tok_per_s_p50", b"per_request_metrics", b"a-run",
                 b"sweep-7"):  # fmt: skip
        assert name in stored
    assert b"kernel_prefill" not in stored
    tables = list(run.glob("files/media/table/*.json"))
    table = json.loads(tables[0].read_text())
    assert table["columns"] == [
        *("run_id", "context_tokens", "success", "ttft_ms"),
        *("sample_id", "question", "prediction", "meteor"),
    ]
    assert table["data"] == [
        ["a-run", 512, False, *[None] * 5],
        *(["a-run", 512, None, 12.5, f"s{n}", "Who?", "Bob", 0.25 * n] for n in range(2)),
    ]
