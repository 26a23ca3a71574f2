"""What a layer does to positions, found out from the layer: undone, no position is left."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from kv_compression import attention_hook, methods
from kv_compression.cache import PrunedCache
from kv_compression.generation import generate
from kv_compression.layer import PrunedLayer
from kv_compression.layer_kinds import layer_kinds
from kv_compression.methods.expected_attention import Method as ExpectedAttention
from kv_compression.methods.l2 import Method as L2
from kv_compression.pruning import Pruning
from kv_compression.rotary import rotations
from tests.models import batch, tiny

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}

# Channels that the layers rotate, by what each family does of its own.
FAMILIES = {
    "cohere": ({}, [8, 8, 8, 8]),  # neighbours are paired
    "cohere2": ({"sliding_window": 512}, [8, 8, 8, 0]),
    "diffllama": ({}, [8, 8, 8, 8]),
    "ernie4_5": ({}, [8, 8, 8, 8]),
    "exaone4": ({"sliding_window": 512, "sliding_window_pattern": 2}, [8, 0, 8, 0]),
    "gemma3_text": ({"layer_types": ["sliding_attention", "full_attention"] * 2}, [8, 8, 8, 8]),
    "glm": ({}, [4, 4, 4, 4]),
    "glm4": ({}, [4, 4, 4, 4]),
    "gpt_neox": ({}, [2, 2, 2, 2]),
    "helium": ({}, [8, 8, 8, 8]),
    "llama": ({}, [8, 8, 8, 8]),
    "nanochat": ({}, [8, 8, 8, 8]),  # turns the other way
    "olmo3": ({"sliding_window": 512}, [8, 8, 8, 8]),
    "phi": ({}, [4, 4, 4, 4]),
    "phi3": ({}, [8, 8, 8, 8]),
    "qwen3": ({}, [8, 8, 8, 8]),
    "smollm3": ({"no_rope_layers": [1, 0, 1, 0]}, [8, 0, 8, 0]),
    "stablelm": ({}, [2, 2, 2, 2]),
}


def family(kind, **options):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | options)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def settled(monkeypatch, model, position):
    """What each layer is told when a single token at `position` has attended: to itself alone."""
    seen, prune = [], PrunedLayer.prune_if_due

    def spy(self, attended):
        seen.append((attended.queries, attended.rotary))
        return prune(self, attended)

    cache = PrunedCache(4, Pruning(ExpectedAttention(), 0.5, prune_after=100))
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(PrunedLayer, "prune_if_due", spy)
        with attention_hook.use_attention(model, "eager", cache):
            model(
                input_ids=torch.tensor([[7]]),
                position_ids=torch.tensor([[position]]),
                past_key_values=cache,
                use_cache=True,
            )
    return seen


@pytest.mark.parametrize("kind", FAMILIES)
def test_undone_a_query_is_the_same_wherever_it_stands(kind, monkeypatch):
    options, widths = FAMILIES[kind]
    model = family(kind, **options)
    near, far = settled(monkeypatch, model, 0), settled(monkeypatch, model, 371)
    pairs = list(zip(near, far, strict=True))
    pairs = pairs[:: len(pairs) // 4]  # some attend more than once in a layer
    kinds = layer_kinds(model.config)
    assert any(kind.is_full for kind in kinds)
    for ((a, rotary), (b, _)), width, kind in zip(pairs, widths, kinds, strict=True):
        assert (rotary is None) == (not kind.is_full)  # windows are never pruned
        if rotary is None:
            continue
        cos, sin = rotary.angles(b, torch.tensor([[371]]))
        assert cos.shape[-1] == width
        assert torch.allclose(a, b, atol=1e-3) == (width == 0)
        undone = rotary.undo(b, torch.tensor([[371]]))
        assert torch.allclose(rotary.undo(a, torch.tensor([[0]])), undone, atol=1e-5)
        assert torch.allclose(rotary.rotate(undone, cos, sin), b, atol=1e-5)


def test_a_rotation_that_also_scales_is_undone():
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0}
    model = tiny(rope_parameters=yarn | {"original_max_position_embeddings": 64})
    rotary = next(iter(rotations(model).values()))
    states, positions = torch.randn(1, 2, 3, 16), torch.tensor([[5, 6, 7]])
    cos, sin = rotary.angles(states, positions)
    assert cos[0, 0].square().max() + sin[0, 0].square().min() != 1
    rotated = rotary.rotate(states, cos, sin)
    assert torch.allclose(rotary.undo(rotated, positions), states, atol=1e-5)


def test_rounding_to_bfloat16_hides_no_rotation():
    assert all(rotary is not None for rotary in rotations(tiny().bfloat16()).values())


def learned_positions():
    return family("gpt2", n_positions=512)


def scaled_after_rotation():
    """Weights behind the rotation that are not the same in all channels: no rotation undoes it."""
    model = family("hunyuan_v1_dense")
    for module in model.modules():
        if isinstance(norm := getattr(module, "query_layernorm", None), nn.Module):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model


@pytest.mark.parametrize("make", [learned_positions, scaled_after_rotation])
def test_what_is_not_known_is_refused_before_anything_is_read(make):
    model = make()
    assert methods.reason_unsupported(L2(), model) is None
    problem = methods.reason_unsupported(ExpectedAttention(), model)
    assert problem.startswith("expected_attention undoes rotary positions, and how its layers")
    input_ids, _ = batch([9], vocab_size=64)
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was called"))
    with pytest.raises(ValueError, match="expected_attention undoes rotary positions"):
        generate(
            model,
            input_ids,
            backend="sdpa",
            max_new_tokens=2,
            pruning=Pruning(ExpectedAttention(), 0.5, prune_after=0),
        )


def test_one_layer_that_is_not_known_is_named(monkeypatch):
    model = tiny()
    known = rotations(model)
    monkeypatch.setitem(known, list(known)[1], None)
    assert "how layer 1 rotates positions is not known" in methods.reason_unsupported(
        ExpectedAttention(), model
    )


def test_a_model_is_asked_once():
    model, calls = tiny(), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    assert rotations(model) is rotations(model)
    assert len(calls) == 1
