"""Prefill one layer at a time: the tokens and the cache of a whole prefill, whatever the chunks."""

from contextlib import nullcontext

import pytest
import torch

from kv_compression import methods
from kv_compression.attention_hook import use_attention
from kv_compression.cache import PrunedCache
from kv_compression.generation import generate
from kv_compression.methods import method_class
from kv_compression.prefill import layered
from kv_compression.prefill.last_layer import last_token_alone
from kv_compression.pruning import Pruning
from kv_compression.selection import padding_or_none
from tests.families import tiny as family
from tests.models import CONFIGS, batch, tiny
from tests.reference import tolerance

pytestmark = pytest.mark.model


TERMS = 3 * 128  # of the longest sum, over the columns of the MLP, in three layers
LENGTHS = [50, 8, 67]  # chunks of 7 rows of three prompts are 2 tokens, many of them all padding


def run(model, lengths, chunk, backend="sdpa", **options):
    input_ids, mask = batch(lengths)
    return generate(
        model,
        input_ids,
        mask,
        backend=backend,
        prefill_chunk=chunk,
        **{"max_new_tokens": 6} | options,
    )


@pytest.mark.parametrize(
    ("architecture", "backend"),
    [*((name, "sdpa") for name in CONFIGS), ("llama", "eager"), ("qwen3", "flex")],
)
def test_tokens_are_those_of_generate(architecture, backend):
    model = tiny(architecture)
    for lengths in ([61], LENGTHS):
        input_ids, mask = batch(lengths)
        expected = model.generate(
            input_ids=input_ids, attention_mask=mask, max_new_tokens=6, do_sample=False
        )[:, max(lengths) :].tolist()
        for chunk in (None, 16, 1000):
            result = run(model, lengths, chunk, backend)
            assert result.new_tokens == expected
            assert result.prefill_mode == ("layered" if chunk else "whole")


@pytest.mark.parametrize("chunk", [1, 7])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_tokens_from_the_smallest_chunks(heads, chunk):
    model = tiny(heads=heads[0], kv_heads=heads[1])
    assert run(model, LENGTHS, chunk).new_tokens == run(model, LENGTHS, None).new_tokens


def last_logits(model, backend, cache, input_ids, position_ids, rows):
    """Of a prefill layer by layer, or of a whole one where `rows` is None."""
    shape = input_ids.shape
    with (
        use_attention(model, backend, cache),
        last_token_alone(model, cache),
        nullcontext() if rows is None else layered.layer_by_layer(model, cache, shape, rows),
    ):
        output = model(
            input_ids, position_ids=position_ids, past_key_values=cache, logits_to_keep=1
        )
    return output.logits[:, -1]


def caches(model, lengths, pruning, rows, kv_bits=None):
    """Caches of a prompt's whole prefill and of a layered one, with the logits of each."""
    input_ids, mask = batch(lengths)
    starts = padding_or_none((mask == 0).sum(1).tolist())
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        for chunk in (None, rows):
            cache = PrunedCache(3, pruning, starts, reserve_tokens=5, kv_bits=kv_bits)
            yield cache, last_logits(model, "sdpa", cache, input_ids, position_ids, chunk)


@pytest.mark.parametrize("lengths", [[67], LENGTHS])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", methods.names())
def test_the_same_tokens_are_kept(name, ratio, lengths):
    pruning = Pruning(method_class(name)(), ratio, prune_after=10, skip_layers=(1,))
    (whole, whole_logits), (chunked, logits) = caches(tiny(), lengths, pruning, 16)
    assert (logits - whole_logits).abs().max() < tolerance(whole_logits, TERMS)
    for one, other in zip(whole.layers, chunked.layers, strict=True):
        assert one.left_padding == other.left_padding
        assert one.stored_tokens == other.stored_tokens
        for row, start in enumerate(one.left_padding or (0,) * len(lengths)):
            for mine, theirs in zip(one.storage.read(), other.storage.read(), strict=True):
                # Another token's keys and values are nowhere near.
                mine, theirs = mine[row, :, start:], theirs[row, :, start:]
                assert (mine - theirs).abs().max() < tolerance(theirs, TERMS)
    assert chunked.stored_bytes() == whole.stored_bytes()
    assert all(layer.storage._keys.shape[2] == layer.stored_tokens + 5 for layer in chunked.layers)


@pytest.mark.parametrize("questions", [None, [3, 2, 30]])
@pytest.mark.parametrize(
    "options", [{}, {"kv_bits": 8}, {"kv_bits": 4}, {"prune_every": 1}, {"prune_every": 4}]
)
@pytest.mark.parametrize("name", methods.names())
def test_requests_of_every_kind(name, options, questions):
    pruning = Pruning(method_class(name)(), 0.3, 10, (1,), prune_every=options.get("prune_every"))
    results = [
        run(
            tiny(),
            LENGTHS,
            chunk,
            pruning=pruning,
            question_tokens=questions,
            kv_bits=options.get("kv_bits"),
            max_new_tokens=11,
        )
        for chunk in (None, 16)
    ]
    first, second = ((r.new_tokens, r.stored_tokens, r.kv_bytes) for r in results)
    assert first == second


def test_a_budget_that_a_prompt_does_not_fill_is_met_later():
    pruning = Pruning(
        method_class("snapkv")(window=6), prune_after=0, keep_tokens=70, prune_every=2
    )
    results = [run(tiny(), LENGTHS, c, pruning=pruning, max_new_tokens=20) for c in (None, 16)]
    assert results[0].new_tokens == results[1].new_tokens


@pytest.mark.parametrize("lengths", [[1], [67], LENGTHS])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_last_layers_other_tokens_do_not_matter(architecture, lengths):
    model = tiny(architecture)
    input_ids, mask = batch(lengths)
    with torch.no_grad():
        expected = model(input_ids=input_ids, attention_mask=mask).logits[:, -1]
    for _, logits in caches(model, lengths, None, 16):
        assert (logits - expected).abs().max() < tolerance(expected, TERMS)


def test_the_last_layer_works_for_one_row_and_is_put_back():
    model, cache = tiny(), PrunedCache(3)
    last, rows = model.model.layers[-1], []
    for mlp in (model.model.layers[0].mlp, last.mlp):
        mlp.down_proj.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[1]))
    with use_attention(model, "sdpa", cache) as kernels, last_token_alone(model, cache):
        assert cache.incoming.last_query_only
        with torch.no_grad():
            model(batch([67])[0], past_key_values=cache, use_cache=True)
    assert rows == [67, 1]
    assert kernels["decode"] == set()
    assert not cache.incoming.last_query_only
    assert "forward" not in vars(last.mlp) | vars(last.self_attn.o_proj)


def test_what_cannot_be_prefilled_so_says_why():
    assert layered.reason_unsupported(tiny()) is None
    assert layered.reason_unsupported(family("gpt2")) == (
        "where GPT2LMHeadModel has its layers is not known"
    )
    derived = type("LlamaForCausalLM", (type(tiny()),), {"__module__": "transformers_modules.mine"})
    assert layered.reason_unsupported(derived(tiny().config)) is not None
    divided = tiny()
    divided.model.layers[1].to("meta")
    assert layered.reason_unsupported(divided) == "the model lies on cpu, meta"
    with pytest.raises(ValueError, match="one layer at a time: the model lies on"):
        run(divided, [9], 16)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[3000], [3000, 40, 2100]])
@pytest.mark.parametrize("backend", ["sdpa", "flash2", "flex"])
def test_half_precision_on_a_gpu_differs_by_rounding_alone(backend, lengths):
    model = tiny(heads=8, kv_heads=2, head_dim=64, dtype=torch.bfloat16, initializer_range=0.02)
    model = model.cuda()
    input_ids, mask = (tensor.cuda() for tensor in batch(lengths))
    starts = padding_or_none((mask == 0).sum(1).tolist())
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        exact = model.float()(input_ids=input_ids, attention_mask=mask).logits[:, -1]
        model.bfloat16()
        errors = []
        for rows in (10**6, 512 * len(lengths)):
            cache = PrunedCache(3, left_padding=starts)
            logits = last_logits(model, backend, cache, input_ids, position_ids, rows)
            errors.append((logits.float() - exact).abs().max().item())
    assert errors[1] <= 2 * errors[0] + 1e-3
