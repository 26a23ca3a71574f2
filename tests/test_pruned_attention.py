"""Prefill, pruning, a chunk and single tokens through cache and backend, against float64 masks."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from kv_compression import attention_hook
from kv_compression.cache import PrunedCache
from kv_compression.methods.l2 import Method as L2
from kv_compression.pruning import Pruning
from kv_compression.selection import padding_or_none
from tests import reference
from tests.models import tiny
from tests.oracle import Undecided, visibility

pytestmark = pytest.mark.model

LAYERS = 3
MODEL = tiny()


@st.composite
def cases(draw):
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    rows = draw(st.integers(1, 3))
    lengths = st.lists(st.integers(1, 300), min_size=rows, max_size=rows)
    return SimpleNamespace(
        kv_heads=kv_heads,
        heads=kv_heads * draw(st.sampled_from([1, 2, 4])),
        head_dim=draw(st.sampled_from([16, 24, 32, 64, 80, 96, 128])),
        prompts=draw(lengths),
        chunks=draw(lengths) if draw(st.booleans()) else None,
        steps=draw(st.integers(0, 3)),
        keep_ratio=draw(st.floats(0.01, 1)),
        skip_layers=tuple(draw(st.sets(st.integers(0, LAYERS - 1)))),
        seed=draw(st.integers(0, 2**31)),
    )


def padded(rows, first, lengths):
    """Of each row (heads, T, D) `lengths[row]` tokens from first[row] on, padded on the left."""
    longest = max(lengths)
    result = torch.full((len(rows), rows[0].shape[0], longest, rows[0].shape[2]), 7.0)
    for row, tensor in enumerate(rows):
        part = tensor[:, first[row] : first[row] + lengths[row]]
        result[row, :, longest - lengths[row] :] = part
    return result


def expected_output(case, layer_idx, row, query, key, value):
    """(T, Hq, D) float64: a row's output as if nothing were ever removed, only hidden."""
    keep_ratio = 1.0 if layer_idx in case.skip_layers else case.keep_ratio
    seen = visibility(key, case.prompts[row], keep_ratio)
    groups = case.heads // case.kv_heads
    key, value, seen = (tensor.repeat_interleave(groups, 0) for tensor in (key, value, seen))
    scores = query.double() @ key.double().transpose(1, 2) / math.sqrt(case.head_dim)
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    return (weights @ value.double()).transpose(0, 1)


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex"])
@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_what_a_pruned_cache_attends_to(backend, case):
    generator = torch.Generator().manual_seed(case.seed)
    rows = range(len(case.prompts))
    parts = [case.prompts, *([case.chunks] if case.chunks else [])]
    parts += [[1] * len(rows)] * case.steps
    totals = [sum(part[row] for part in parts) for row in rows]

    def random(heads, row):
        return torch.randn(heads, totals[row], case.head_dim, generator=generator)

    text = [
        [(random(case.heads, r), random(case.kv_heads, r), random(case.kv_heads, r)) for r in rows]
        for _ in range(LAYERS)
    ]
    pruning = Pruning(L2(), case.keep_ratio, 0, case.skip_layers)
    starts = padding_or_none([max(case.prompts) - length for length in case.prompts])
    cache = PrunedCache(LAYERS, pruning, starts)
    try:
        expected = [
            [expected_output(case, layer_idx, row, *text[layer_idx][row]) for row in rows]
            for layer_idx in range(LAYERS)
        ]
    except Undecided:
        reject()
    done = [0] * len(rows)
    with attention_hook.use_attention(MODEL, backend, cache):
        for lengths in parts:
            padding = [max(lengths) - length for length in lengths]
            cache.expect(left_padding=padding_or_none(padding))
            for layer_idx in range(LAYERS):
                query, key, value = (
                    padded([text[layer_idx][row][kind] for row in rows], done, lengths)
                    for kind in range(3)
                )
                key, value = cache.update(key, value, layer_idx)
                module = SimpleNamespace(layer_idx=layer_idx)
                output, _ = attention_hook._forward(module, query, key, value, None)
                assert output.isfinite().all()
                assert output.is_contiguous()  # some models take a view of it
                for row, length in enumerate(lengths):
                    wanted = expected[layer_idx][row][done[row] : done[row] + length]
                    error = (output[row, output.shape[1] - length :].double() - wanted).abs().max()
                    assert error < reference.attention_tolerance(
                        *text[layer_idx][row], 1 / math.sqrt(case.head_dim)
                    )
            done = [a + b for a, b in zip(done, lengths, strict=True)]
    for layer_idx, layer in enumerate(cache.layers):
        kept = [
            length if layer_idx in case.skip_layers else math.ceil(case.keep_ratio * length)
            for length in case.prompts
        ]
        later = [total - prompt for total, prompt in zip(totals, case.prompts, strict=True)]
        stored = [a + b for a, b in zip(kept, later, strict=True)]
        assert [
            layer.stored_tokens - start for start in layer.left_padding or [0] * len(rows)
        ] == stored


def test_a_layer_may_attend_again_to_what_was_pruned_since():
    query, key, value = (torch.randn(2, 2, 9, 16) for _ in range(3))
    cache = PrunedCache(LAYERS, Pruning(L2(), 0.5, 0), left_padding=(0, 5))
    with attention_hook.use_attention(MODEL, "sdpa", cache):
        key, value = cache.update(key, value, 0)
        module = SimpleNamespace()
        first, again = (
            attention_hook._forward(module, query, key, value, None)[0] for _ in range(2)
        )
    assert torch.equal(first, again)
    assert cache.layers[0].stored_tokens == 5
    assert cache.layers[0].left_padding == (0, 3)


def test_keys_of_another_layer_are_read_only_where_nothing_is_pruned():
    query, *states = (torch.randn(1, 2, 5, 16) for _ in range(3))
    own, other = SimpleNamespace(), SimpleNamespace()
    for pruning in (None, Pruning(L2(), 0.5, 0)):
        cache = PrunedCache(LAYERS, pruning)
        with attention_hook.use_attention(MODEL, "sdpa", cache):
            key, value = cache.update(*states, 0)
            attention_hook._forward(own, query, key, value, None)
            if pruning is None:
                attention_hook._forward(other, query, key, value, None)
                continue
            with pytest.raises(NotImplementedError, match="keys of another layer"):
                attention_hook._forward(other, query, key, value, None)


def test_attention_both_ways_is_refused():
    cache = PrunedCache(LAYERS)
    states = [torch.randn(1, 2, 5, 16) for _ in range(3)]
    with attention_hook.use_attention(MODEL, "sdpa", cache):
        key, value = cache.update(*states[:2], 0)
        for module, options in (
            (SimpleNamespace(is_causal=False), {}),
            (SimpleNamespace(is_causal=True), {"is_causal": False}),
        ):
            with pytest.raises(NotImplementedError, match="both ways"):
                attention_hook._forward(module, states[2], key, value, None, **options)
