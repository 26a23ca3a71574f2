"""Several processes, on the CPU: the same results as one, shares kept when one dies."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from longctx.distributed import Processes
from longctx.errors import SettingError
from longctx.launch import Launch
from longctx.preflight import placed
from longctx.settings import Settings
from tests.runs import fork, run, without_timings

pytestmark = pytest.mark.model

TWO = ("--nproc_per_node=2", "--master_port")


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def finished(process, folder):
    """The one full result that a process leaves."""
    _, notes = process.communicate(timeout=170)
    assert process.returncode == 0, notes
    (path,) = folder.glob("*_full.json")
    assert len(list(folder.iterdir())) == 2
    return json.loads(path.read_text())


def two(tiny_folder, *folders, **settings):
    """Two processes that meet as torchrun would have them, with these folders, or both with one."""
    launch = {
        "TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(),
        "WORLD_SIZE": "2",
    }  # fmt: skip
    return [
        fork(tiny_folder, folder, **settings, **launch, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank, folder in enumerate((*folders, *folders)[:2])
    ]


def comparable(rows):
    return [without_timings(row) for row in rows]


@pytest.mark.timeout(400)
def test_shares_of_the_samples_and_parts_of_the_model_give_the_results_of_one(
    tiny_folder, tmp_path
):
    settings = {"N_SAMPLES": "7", "BATCH_SIZE": "2", "KV_MODE": "l2", "PRUNE_AFTER": "0"}
    one = run(tiny_folder, tmp_path / "one", **settings)
    folder = tmp_path / "shares"
    shares = finished(two(tiny_folder, folder, **settings)[0], folder)
    assert comparable(shares["rows"]) == comparable(one["rows"])
    for mine, theirs in zip(shares["ctx_summaries"], one["ctx_summaries"], strict=True):
        assert (mine.pop("n_processes"), theirs.pop("n_processes")) == (2, 1)
        assert without_timings(mine) == without_timings(theirs)
    again = two(tiny_folder, folder, SKIP_DONE="1", **settings)
    finished(again[0], folder)
    assert again[1].wait() == 0
    assert "SKIP_DONE: these settings have their results" in again[0].communicate()[1]
    folder = tmp_path / "parts"
    parts = finished(two(tiny_folder, folder, TP_PLAN="auto", **settings)[0], folder)
    tokens = [[sample["output"] for row in full["rows"] for sample in row["samples"]]
              for full in (one, parts)]  # fmt: skip
    assert tokens[0] == tokens[1]
    # The layers are split, the embeddings of the large vocabulary are not all.
    weights = [full["summary"]["weights_gb"] for full in (one, parts)]
    assert 0.4 * weights[0] < weights[1] < weights[0]


@pytest.mark.timeout(400)
def test_two_machines_that_share_no_folder(tiny_folder, tmp_path):
    """The first one's folder has the whole result."""
    settings = {"N_SAMPLES": "5", "CONTEXTS": "200"}
    processes = two(tiny_folder, tmp_path / "node0", tmp_path / "node1", **settings)
    full = finished(processes[0], tmp_path / "node0")
    assert processes[1].wait() == 0
    assert list((tmp_path / "node1").iterdir()) == []
    one = run(tiny_folder, tmp_path / "one", **settings)
    assert comparable(full["rows"]) == comparable(one["rows"])


@pytest.mark.timeout(400)
def test_a_process_that_dies_ends_the_run_and_all_rows_are_kept(tiny_folder, tmp_path):
    settings = {"N_SAMPLES": "40", "CONTEXTS": "200", "MAX_NEW_TOKENS": "20"}
    process = fork(tiny_folder, tmp_path, launcher=(*TWO, free_port()), **settings)
    journals = []
    while process.poll() is None:
        journals = list(tmp_path.glob("*_rows.jsonl"))
        if len(journals) == 2 and all(p.read_text().count("\n") > 2 for p in journals):
            break
        time.sleep(0.01)
    _kill_one_child(process.pid)
    process.communicate(timeout=120)
    assert process.returncode not in (0, None)
    kept = [json.loads(line) for path in journals for line in path.read_text().splitlines()]
    kept = [row for row in kept if "run_meta" not in row]
    resumed = run(tiny_folder, tmp_path, RESUME="1", **settings)
    assert [row["first_sample"] for row in resumed["rows"]] == list(range(40))
    for row in kept:
        assert row in resumed["rows"]


def _kill_one_child(pid):
    """SIGKILL the last Python process that torchrun has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)


def test_launch_is_torchruns_word_alone():
    assert Launch.of({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Launch()
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert Launch.of(torchrun) == Launch(3, 4, 1)


def test_shares_are_dealt_out_in_turn():
    items = list(range(7))
    shares = [Processes(rank, 3).mine(items) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]
    assert Processes(1, 3, shards=False).mine(items) == items


def test_where_each_process_goes(monkeypatch):
    with pytest.raises(SettingError, match="needs torchrun"):
        placed(Settings(tp_plan="auto"), Processes())
    with pytest.raises(SettingError, match="weights to load"):
        placed(Settings(tp_plan="auto", model_id="random/mistral-7b"), Processes(0, 2))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert placed(Settings(), Processes(1, 2, local_rank=1)).device_map == "cuda:1"
    assert placed(Settings(device_map="cpu"), Processes(1, 2, 1)).device_map == "cpu"
    assert placed(Settings(), Processes()).device_map == "auto"
