"""PREFILL: when a run goes layer by layer, and that its answers stay the same."""

import types

import pytest

from flex_pipeline import hotpot_qa_flex
from longctx import config, plan, preflight
from longctx.errors import SettingError
from longctx.settings import Settings
from tests.models import tiny
from tests.runs import run


@pytest.mark.model
@pytest.mark.parametrize("scope", ["prompt", "context"])
def test_a_layered_run_gives_the_rows_of_a_whole_one(tiny_folder, tmp_path, scope):
    shared = {"KV_MODE": "snapkv", "PRUNE_AFTER": "100", "BATCH_SIZE": "2", "KV_SCOPE": scope}
    whole = run(tiny_folder, tmp_path, **shared)
    layered = run(tiny_folder, tmp_path, PREFILL="layered", PREFILL_CHUNK="50", **shared)
    for full, mode in ((whole, "whole"), (layered, "layered")):
        assert {row["prefill_mode"] for row in full["rows"]} == {mode}
        assert {summary["prefill_mode"] for summary in full["ctx_summaries"]} == {mode}
    one, other = (
        [(row["samples"], row["stored_tokens_per_layer"]) for row in full["rows"]]
        for full in (whole, layered)
    )
    assert one == other
    assert whole["run_meta"]["fingerprint"] != layered["run_meta"]["fingerprint"]


def test_auto_goes_by_layers_where_prompts_are_long_and_a_gpu_does_the_work(monkeypatch):
    model = tiny()
    source = types.SimpleNamespace(is_random=False, tokenizer=None)

    def chunk_rows(rows, **settings):
        made = plan.make(Settings(decode="eager", **settings), source, model, backend="sdpa")
        return made.chunk_rows(rows)

    assert chunk_rows(1000, prefill_chunk=100) is None
    monkeypatch.setattr(type(model), "device", types.SimpleNamespace(type="cuda"))
    assert chunk_rows(200, prefill_chunk=100) is None
    assert chunk_rows(201, prefill_chunk=100) == 100
    assert chunk_rows(10**6, prefill="whole") is None
    chunks = [chunk_rows(rows, prefill="layered") for rows in (5, 65536, 65537)]
    assert chunks == [6144, 6144, 3072]
    model.model.layers[1].to("meta")
    assert chunk_rows(1000, prefill_chunk=100) is None
    with pytest.raises(SettingError, match="PREFILL=layered: the model lies on cpu, meta"):
        chunk_rows(1000, prefill="layered")


def test_what_cannot_be_layered_is_refused_before_the_model_is_loaded():
    preflight.check_prefill(Settings(prefill="layered"))
    with pytest.raises(SettingError, match="leave TP_PLAN at none"):
        preflight.check_prefill(Settings(prefill="layered", tp_plan="auto"))
    settings, _ = config.read(hotpot_qa_flex.HotpotQAFlexSettings, {"PREFILL": "layered"})
    with pytest.raises(SettingError, match="masks are made for whole prefills"):
        hotpot_qa_flex.attention(settings)
