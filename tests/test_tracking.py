import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from longctx.settings import Settings
from longctx.tracking import Tracker

ROOT = Path(__file__).parents[1]
META = {"run_id": "a-run", "tags": ["model", "sdpa"], "variables": {"KEEP_RATIO": 0.5}}
SUMMARY = {"context_tokens": 512, "meteor": 0.25, "ttft_ms_p50": 12.5, "tok_per_s_p50": 8.0,
           "peak_gpu_mem_gb_p95": None, "meteor_by_kind": {"sad": {"n": 1, "meteor": 0.5}},
           "kv_cache_gb": 0.5, "kernel_prefill": "math", "n_asked": 4, "n_failed_samples": 3,
           "meteor_failures_as_0": 0.0625, "question_ttft_ms_p50": 2.5,
           "setup_ms_p50": 1.5}  # fmt: skip
ROWS = [
    {"run_id": "a-run", "context_tokens": 512, "success": False, "samples": []},
    {"run_id": "a-run", "context_tokens": 512, "ttft_ms": 12.5, "samples": []},
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


def test_disabled_writes_nothing(in_tmp_path):
    track("disabled")
    assert list(in_tmp_path.iterdir()) == []


def test_without_credentials_it_says_so_once_and_goes_on(in_tmp_path, capfd):
    track("online")
    notes = [line for line in capfd.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "no W&B" in notes[0]


def test_without_the_package_it_says_so_and_goes_on(in_tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    track("online")
    assert "wandb is not installed" in capsys.readouterr().err


def test_offline_keeps_figures_under_their_groups(in_tmp_path):
    # In a process of its own: wandb remembers the folder it was first used in.
    subprocess.run(
        [sys.executable, "-c", "from tests.test_tracking import track; track('offline')"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    (run,) = in_tmp_path.glob("wandb/offline-run-*")
    stored = next(run.glob("*.wandb")).read_bytes()
    for name in (b"latency/ttft_ms_p50", b"quality/meteor", b"memory/kv_cache_gb",
                 b"quality/meteor_by_kind/sad", b"quality/meteor_failures_as_0",
                 b"samples/n_asked", b"samples/n_failed_samples", b"latency/question_ttft_ms_p50",
                 b"latency/setup_ms_p50",
                 b"throughput/tok_per_s_p50", b"per_request_metrics", b"a-run"):  # fmt: skip
        assert name in stored
    assert b"kernel_prefill" not in stored
    tables = list(run.glob("files/media/table/*.json"))
    assert json.loads(tables[0].read_text())["columns"] == [
        *("run_id", "context_tokens", "success", "ttft_ms"),
    ]
