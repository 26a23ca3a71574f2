"""Captured decode steps: where they can be, and on a GPU the tokens of the eager loop."""

import gc
import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import narrativeqa_eval
from kv_compression import budgets, decode_graph, methods
from kv_compression.attention import backend
from kv_compression.budgets import budget_class
from kv_compression.decode_graph import CannotBeCapturedError, DecodeGraphs
from kv_compression.generation import generate
from kv_compression.methods import method_class
from kv_compression.pruning import Pruning
from longctx import config, models, plan, requests
from longctx.errors import SettingError
from longctx.runner import Run
from longctx.settings import Settings
from tests.models import batch, tiny
from tests.runs import environ, run

L2 = method_class("l2")()


def test_what_cannot_be_captured_is_said(monkeypatch):
    model = tiny()
    again = Pruning(L2, prune_every=8)
    assert "needs a CUDA GPU" in decode_graph.reason_unsupported(model)
    assert "made anew at every step" in decode_graph.reason_unsupported(model, kv_bits=8)
    assert "pruned again" in decode_graph.reason_unsupported(model, pruning=again)
    assert "no other kernel" in decode_graph.reason_unsupported(model, backend=backend("sdpa"))
    monkeypatch.setattr(torch.Tensor, "device", torch.device("cuda"))
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "package triton" in decode_graph.reason_unsupported(model)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: known("torch"))
    assert decode_graph.reason_unsupported(model) is None
    model.config.rope_parameters["rope_type"] = "dynamic"
    assert "dynamic rotary" in decode_graph.reason_unsupported(model)
    model.config.head_dim = 24
    assert "16 channels" in decode_graph.reason_unsupported(model)


def test_a_graph_that_cannot_be_is_refused_and_auto_says_why_on_a_gpu(monkeypatch, capsys):
    model, again = tiny(), Pruning(L2, prune_every=8)

    def chosen(decode, pruning=None):
        settings = Settings(decode=decode)
        source = SimpleNamespace(is_random=False, tokenizer=None)
        return plan.make(settings, source, model, backend="sdpa", pruning=pruning).graphs

    assert chosen("eager") is chosen("auto") is None
    assert not capsys.readouterr().err
    with pytest.raises(SettingError, match="DECODE=graph: cannot be, since the cache is pruned"):
        chosen("graph", again)
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    assert chosen("auto", again) is None
    assert "DECODE=eager, since the cache is pruned again" in capsys.readouterr().err


def test_generate_refuses_a_graph_that_would_be_wrong():
    model, (input_ids, _) = tiny(), batch([9])
    options = {"backend": "sdpa", "max_new_tokens": 2, "graphs": DecodeGraphs(model)}
    with pytest.raises(ValueError, match="no decode step can be captured: it needs a CUDA GPU"):
        generate(model, input_ids, **options)
    with pytest.raises(ValueError, match="made anew"):
        generate(model, input_ids, kv_bits=8, **options)


@pytest.mark.model
def test_auto_goes_on_without_a_graph_where_a_step_cannot_be_captured(
    tiny_folder, tmp_path, monkeypatch, capsys
):
    with_graphs = []

    def generate(model, *, graphs, **options):
        result = real(model, graphs=None, **options)
        if graphs is None:
            return result
        with_graphs.append(1)
        if len(with_graphs) > 2:
            raise CannotBeCapturedError("its step cannot be captured: it asks the device")
        return replace(result, capture_ms=50.0)

    real = requests.generate
    monkeypatch.setattr(requests, "generate", generate)
    monkeypatch.setattr(decode_graph, "reason_unsupported", lambda *_, **__: None)
    full = run(tiny_folder, tmp_path, N_SAMPLES="3", CONTEXTS="200")
    assert "DECODE=eager, since its step cannot be captured" in capsys.readouterr().err
    # Of the warm-up and of the first request, also after graphs were given up.
    assert full["ctx_summaries"][0]["capture_ms"] == 100
    assert [row["capture_ms"] for row in full["rows"]] == [50, 0, 0]
    values = environ(tiny_folder, tmp_path, N_SAMPLES="1", CONTEXTS="200")
    wanted = Run(narrativeqa_eval.TASK, *config.read(narrativeqa_eval.TASK.settings, values))
    wanted.settings = replace(wanted.settings, decode="graph")
    (row,) = wanted.execute()["rows"]
    assert row["error"].startswith("CannotBeCapturedError: its step cannot be captured")


@pytest.mark.model
def test_results_say_how_tokens_were_made(tiny_folder, tmp_path):
    full = run(tiny_folder, tmp_path, N_SAMPLES="2")
    for summary in full["ctx_summaries"]:
        assert (summary["decode_mode"], summary["capture_ms"]) == ("eager", 0)
    assert {row["decode_mode"] for row in full["rows"]} == {"eager"}


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "budget"),
    [
        *((name, "uniform") for name in ("none", *methods.names())),
        *(("l2", budget) for budget in budgets.names()),
    ],
)
def test_tokens_are_those_of_the_eager_loop(name, budget, exact_products):
    model = tiny(heads=6, kv_heads=2).cuda()
    graphs, lengths = DecodeGraphs(model), [37, 5, 131, 2]
    input_ids, mask = batch(lengths)
    pruning = None
    if name != "none":
        shared = budget_class(budget)()
        pruning = Pruning(method_class(name)(), 0.4, 6, skip_layers=(0,), budget=shared)
    for attention in ("eager", "sdpa", "flex"):
        for questions in (None, [9, 1, 30, 1]):
            options = {
                "backend": attention,
                "max_new_tokens": 16,
                "pruning": pruning,
                "question_tokens": questions,
            }
            eager = generate(model, input_ids, mask, **options)
            step = generate(model, input_ids, mask, graphs=graphs, **options)
            assert step.new_tokens == eager.new_tokens
            assert step.kernels["decode"] == ["triton split-kv"]
            assert step.stored_tokens == eager.stored_tokens


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "qwen3", "phi3"])
def test_tokens_of_each_architecture_and_of_a_large_batch(architecture, exact_products):
    model = tiny(architecture).cuda()
    graphs = DecodeGraphs(model)
    for lengths in ([61], [9] * 16 + [30]):
        input_ids, mask = batch(lengths)
        options = {"backend": "sdpa", "max_new_tokens": 12}
        eager = generate(model, input_ids, mask, **options)
        assert generate(model, input_ids, mask, graphs=graphs, **options).new_tokens == (
            eager.new_tokens
        )


@pytest.mark.gpu
def test_a_step_is_captured_once_and_ends_at_stop_tokens(exact_products):
    model = tiny().cuda()
    graphs, captured_ms = DecodeGraphs(model), 0.0
    for length in (40, 90, 7):
        input_ids, _ = batch([length], seed=length)
        options = {"backend": "sdpa", "max_new_tokens": 12}
        eager = generate(model, input_ids, **options)
        stop = {eager.new_tokens[0][5]}
        expected = generate(model, input_ids, stop_tokens=stop, **options)
        stopped = generate(model, input_ids, stop_tokens=stop, graphs=graphs, **options)
        assert stopped.new_tokens == expected.new_tokens
        assert (stopped.capture_ms > 0) == (length == 40)
        captured_ms += stopped.capture_ms
    assert captured_ms > 0


@pytest.mark.gpu
def test_captures_leave_no_memory_behind():
    # More rows than fused layers take, so that the products are cuBLAS's, which has workspaces.
    model, (input_ids, mask) = tiny().cuda(), batch([9] * 17)
    left = []
    for _ in range(4):
        graphs = DecodeGraphs(model)
        generate(model, input_ids, mask, backend="sdpa", max_new_tokens=4, graphs=graphs)
        del graphs
        gc.collect()
        left.append(torch.cuda.memory_allocated())
    assert left[1:] == left[:1] * 3


@pytest.mark.gpu
def test_nan_is_found_on_the_device():
    model = tiny().cuda()
    graphs = DecodeGraphs(model)
    input_ids, _ = batch([20])
    options = {"backend": "sdpa", "max_new_tokens": 4, "graphs": graphs}
    token = generate(model, input_ids, **options).new_tokens[0][1]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN at new token 3"):
        generate(model, input_ids, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [4, 8])
def test_a_step_of_quantized_layers_is_near_the_models_own(bits):
    pytest.importorskip("bitsandbytes")
    values = {"MODEL_ID": "random/smollm2-135m", "QUANT_MODE": f"bnb{bits}"}
    settings, environ = config.read(Settings, values)
    model, _ = models.load(
        settings, models.find(settings), environ.quantization(settings.quant_mode)
    )
    assert decode_graph.reason_unsupported(model, batch=1) is None
    input_ids, _ = batch([300], vocab_size=49152)
    options = {"backend": "sdpa", "max_new_tokens": 2}
    token = generate(model, input_ids, graphs=DecodeGraphs(model), **options).new_tokens[0][1]
    first = generate(model, input_ids, **options).new_tokens[0][:1]
    with torch.inference_mode():
        logits = model(torch.cat([input_ids, torch.tensor([first])], dim=1).cuda()).logits[0, -1]
    # Among 49,152 tokens whose logits scatter by `std`, the step's choice is at the top but for
    # rounding.
    assert logits.max() - logits[token] < 0.1 * logits.float().std()
