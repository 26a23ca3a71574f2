"""Runs that share a prefill have the rows, summaries and files of runs of their own."""

import itertools
import json
import re
import sys

import pytest
import torch

import narrativeqa_eval
from kv_compression import shared_prefill
from longctx import cells, cli, figures
from longctx.errors import CannotRunError
from tests.runs import environ, run

pytestmark = pytest.mark.model

SETTINGS = {"PRUNE_AFTER": "0", "SKIP_LAYERS": "0", "WARMUP": "0", "BATCH_SIZE": "2"}
LISTS = {"KV_MODE": "l2,snapkv", "KEEP_RATIO": "0.5,0.25"}
CELLS = [("none", 0.7), *itertools.product(("l2", "snapkv"), (0.5, 0.25))]
NOT_SHARED = {figure.key for figure in figures.FIGURES if figure.of_prefill or figure.of_document}
TIMES = {"question_ttft_ms", "ms_per_token_decode", "tok_per_s_decode", "decode_ms"}


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["narrativeqa_eval.py"])


def together(folder, logdir, **changes):
    """Full results of each cell, by method and share."""
    changes = {**SETTINGS, **LISTS, **changes}
    cli.main(narrativeqa_eval.TASK, "", environ(folder, logdir, **changes))
    return results_in(logdir)


def results_in(logdir):
    found = {}
    for path in logdir.glob("*_full.json"):
        full = json.loads(path.read_text())
        variables = full["run_meta"]["variables"]
        found[variables["KV_MODE"], variables["KEEP_RATIO"]] = full
    return found


def plain(row):
    """What of a row is the same however it was made."""
    left_out = {"run_id", "setup_ms", "shared_ttft_ms", *TIMES, *NOT_SHARED}
    return {key: value for key, value in row.items() if key not in left_out}


@pytest.mark.parametrize("scope", ["prompt", "context"])
def test_rows_are_those_of_runs_of_their_own(tiny_folder, tmp_path, scope):
    found = together(tiny_folder, tmp_path / "together", KV_SCOPE=scope)
    assert set(found) == set(CELLS)
    for (mode, ratio), full in found.items():
        settings = SETTINGS | {"KV_MODE": mode, "KEEP_RATIO": str(ratio), "KV_SCOPE": scope}
        own = run(tiny_folder, tmp_path / f"{mode}{ratio}", **settings)
        assert [plain(row) for row in full["rows"]] == [plain(row) for row in own["rows"]]
        for shared, mine in zip(full["ctx_summaries"], own["ctx_summaries"], strict=True):
            for key in ("meteor", "meteor_ci95", "kv_cache_gb", "n_requests", "answered_count"):
                assert shared[key] == mine[key]
        assert all(row[key] is None for row in full["rows"] for key in NOT_SHARED)
        assert all(row["shared_ttft_ms"] > 0 for row in full["rows"])
        assert all(row["shared_ttft_ms"] is None for row in own["rows"])
        assert full["run_meta"]["shares_prefill"]
        assert full["run_meta"]["fingerprint"] != own["run_meta"]["fingerprint"]


def test_budgets_are_a_list_too(tiny_folder, tmp_path, capsys):
    lists = {"KV_MODE": "l2", "KEEP_RATIO": "0.25", "KV_BUDGET": "uniform,adakv,whole_model"}
    changes = SETTINGS | lists | {"KV_SCOPE": "context", "CONTEXTS": "200", "N_SAMPLES": "3"}
    cli.main(narrativeqa_eval.TASK, "", environ(tiny_folder, tmp_path / "together", **changes))
    (table,) = re.findall(
        r"KV_SCOPE=context, 200 tokens.*Score, what", capsys.readouterr().out, re.S
    )
    assert all(f" {name} " in table for name in ("l2", "l2 adakv", "l2 whole_model"))
    found = {}
    for path in (tmp_path / "together").glob("*_full.json"):
        full = json.loads(path.read_text())
        variables = full["run_meta"]["variables"]
        found[variables["KV_MODE"], variables["KV_BUDGET"]] = full
    assert set(found) == {
        ("none", "uniform"),
        *(("l2", name) for name in lists["KV_BUDGET"].split(",")),
    }
    for (mode, budget), full in found.items():
        own = changes | {"KV_MODE": mode, "KV_BUDGET": budget}
        if mode == "none":
            own = {
                name: value
                for name, value in own.items()
                if name not in ("KV_BUDGET", "KEEP_RATIO")
            }
        rows = run(tiny_folder, tmp_path / f"{mode}-{budget}", **own)["rows"]
        assert [plain(row) for row in full["rows"]] == [plain(row) for row in rows]
        if mode != "none":
            held = {row["kv_cache_gb"] for row in full["rows"]}
            assert max(held) < 0.7 * max(
                row["kv_cache_gb"] for row in found["none", "uniform"]["rows"]
            )


def test_each_prompt_is_read_once(tiny_folder, tmp_path, monkeypatch):
    real, read = shared_prefill.read_prompt, []
    monkeypatch.setattr(
        shared_prefill, "read_prompt", lambda *given: read.append(1) or real(*given)
    )
    together(tiny_folder, tmp_path, CONTEXTS="200")
    assert len(read) == 3  # five samples in batches of two


def test_what_is_done_is_not_done_again_and_what_failed_is_told_by_its_run(
    tiny_folder, tmp_path, monkeypatch, capsys
):
    real = shared_prefill.answered

    def answered(forward, *arguments, **options):
        if forward.cache.layers[1].pruning is None:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(forward, *arguments, **options)

    monkeypatch.setattr(shared_prefill, "answered", answered)
    found = together(tiny_folder, tmp_path, CONTEXTS="200", KEEP_RATIO="0.5")
    # The full cache's run made its requests by itself then.
    assert [len(full["rows"]) for full in found.values()] == [3, 3, 3]
    assert all(row["success"] for full in found.values() for row in full["rows"])
    capsys.readouterr()
    together(tiny_folder, tmp_path, CONTEXTS="200", SKIP_DONE="1")
    assert capsys.readouterr().err.count("SKIP_DONE: these settings have") == 3
    assert set(results_in(tmp_path)) == set(CELLS)


def test_runs_may_be_measured_apart(tiny_folder, tmp_path):
    found = together(tiny_folder, tmp_path, CONTEXTS="200", SHARE_PREFILL="off")
    assert set(found) == set(CELLS)
    assert all(row["ttft_ms"] > 0 for full in found.values() for row in full["rows"])


def test_what_cannot_share_a_prefill_runs_apart(tiny_folder, tmp_path, capsys):
    found = together(
        tiny_folder, tmp_path, CONTEXTS="200", PRUNE_EVERY="4", KV_MODE="l2", N_SAMPLES="2"
    )
    assert len(found) == 3
    assert "pruned again differ in more than" in capsys.readouterr().err
    assert all(row["success"] for full in found.values() for row in full["rows"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"KV_MODE": "l2,l3"}, "KV_MODE=l3: choose one of"),
        ({"KV_MODE": "l2", "KEEP_RATIO": "0.5,2"}, "KEEP_RATIO=2: "),
        ({"KV_MODE": "l2", "KEEP_RATIO": "0.5,0.5"}, "gives the setting or a value twice"),
        ({"KEEP_RATIO": "0.5,0.7"}, "prunes nothing with KV_MODE=none"),
    ],
)
def test_lists_that_cannot_be_used(changes, message):
    with pytest.raises(CannotRunError, match=message):
        cells.environments(narrativeqa_eval.TASK.settings, changes)
