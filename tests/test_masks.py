"""Masks against their definitions and FlexAttention under them against dense float64 attention."""

import itertools
import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import flex_attention

from flex_pipeline import masks
from flex_pipeline.masked_attention import (
    MaskedFlex,
    block_mask_of,
    block_sparsity_pct,
    blocks,
)
from flex_pipeline.masks import Span
from kv_compression.attention import flex
from kv_compression.generation import generate
from kv_compression.layout import Layout
from kv_compression.methods.l2 import Method as L2
from kv_compression.pruning import Pruning
from tests.models import batch, tiny
from tests.reference import attention_tolerance

CPU = torch.device("cpu")
HEADS = [(4, 4), (6, 2), (8, 1), (9, 3)]  # query heads, key/value heads: MHA, GQA, MQA


# What each mask means, a pair at a time and from nothing that is tested.
def sees(name, options, query, key):
    distance = query - key
    if name == "prefix" and query < options["prefix"] and key < options["prefix"]:
        return True
    if distance < 0:
        return False
    if name == "sliding_window":
        return distance <= options["window"] - 1
    if name == "sink_window":
        return distance <= options["window"] - 1 or key <= options["sinks"] - 1
    if name == "dilated":
        seen = [step * options["dilation"] for step in range(options["window"])]
        return distance in seen
    return True


def dense(name, options, layout):
    """(B, Q, S) bool; a query that is padding sees itself alone."""
    past_len = layout.stored_len - layout.query_len
    rows = []
    for start in layout.left_padding or (0,):
        visible = torch.zeros(layout.query_len, layout.stored_len, dtype=torch.bool)
        for query, key in itertools.product(range(layout.query_len), range(layout.stored_len)):
            own = past_len + query
            if own < start:
                visible[query, key] = key == own
            elif key >= start:
                visible[query, key] = sees(name, options, own - start, key - start)
        rows.append(visible)
    return torch.stack(rows)


def float64_attention(query, key, value, visible, scaling):
    """query (B, Hq, Q, D), key and value (B, H, S, D), visible (B or 1, Q, S) -> (B, Q, Hq, D)."""
    group = query.shape[1] // key.shape[1]
    query, key, value = (tensor.double().cpu() for tensor in (query, key, value))
    output = torch.empty_like(query)
    for head in range(query.shape[1]):
        scores = query[:, head] @ key[:, head // group].transpose(1, 2) * scaling
        weights = scores.masked_fill(~visible, -math.inf).softmax(dim=-1)
        output[:, head] = weights @ value[:, head // group]
    return output.transpose(1, 2)


@st.composite
def named_masks(draw, largest=300):
    name = draw(st.sampled_from(sorted(masks.FACTORIES)))
    sizes = {
        "window": st.integers(1, largest),
        "sinks": st.integers(0, largest),
        "prefix": st.integers(0, largest),
        "dilation": st.integers(1, 7),
    }
    return name, {parameter: draw(sizes[parameter]) for parameter in masks.parameters(name)}


@st.composite
def layouts(draw, longest=300):
    stored_len = draw(st.integers(1, longest))
    query_len = draw(st.sampled_from([1, stored_len, draw(st.integers(1, stored_len))]))
    starts = tuple(draw(st.lists(st.integers(0, stored_len - 1), min_size=1, max_size=2)))
    return Layout(starts if any(starts) else None, query_len, stored_len, CPU)


@st.composite
def spans(draw):
    first = draw(st.integers(0, 40))
    return Span(first, draw(st.integers(first, first + 12)))


@settings(max_examples=250, deadline=None)
@given(mask=named_masks(largest=45), queries=spans(), keys=spans())
def test_blocks_are_touched_and_covered_exactly_when_their_pairs_are_seen(mask, queries, keys):
    name, options = mask
    made = masks.FACTORIES[name](**options)
    pairs = [
        sees(name, options, query, key)
        for query in range(queries.first, queries.last + 1)
        for key in range(keys.first, keys.last + 1)
    ]
    as_tensors = [Span(*map(torch.tensor, span)) for span in (queries, keys)]
    assert made.touches(*as_tensors).item() == any(pairs)
    assert bool(made.covers(*as_tensors)) == bool(made.covers(queries, keys)) == all(pairs)


@settings(max_examples=25, deadline=None)
@given(
    mask=named_masks(200),
    layout=layouts(200),
    heads=st.sampled_from(HEADS),
    seed=st.integers(0, 99),
)
def test_flex_under_every_mask_equals_dense_float64(mask, layout, heads, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = len(layout.left_padding) if layout.left_padding else 2

    def random(n_heads, length):
        return torch.randn(rows, n_heads, length, 16, generator=generator)

    query = random(heads[0], layout.query_len)
    key, value = random(heads[1], layout.stored_len), random(heads[1], layout.stored_len)
    name, options = mask
    block_mask = block_mask_of(masks.FACTORIES[name](**options), layout)
    output, _ = flex.attend_under(query, key, value, block_mask, 0.25)
    visible = dense(name, options, layout)
    expected = float64_attention(query, key, value, visible, 0.25)
    allowed = attention_tolerance(query, key, value, 0.25)
    assert (output.double() - expected).abs().max() < allowed
    if block_mask is None:
        assert visible.all()


@settings(max_examples=25, deadline=None)
@given(mask=named_masks(), layout=layouts())
def test_no_block_is_computed_without_need_or_left_out(mask, layout):
    """The uncompiled function computes every pair, so blocks are compared by themselves."""
    name, options = mask
    touched, whole = blocks(masks.FACTORIES[name](**options), layout)
    visible = dense(name, options, layout)
    for row, first_query, first_key in itertools.product(
        range(visible.shape[0]), range(0, layout.query_len, 128), range(0, layout.stored_len, 128)
    ):
        pairs = visible[row, first_query : first_query + 128, first_key : first_key + 128]
        place = (row, first_query // 128, first_key // 128)
        assert touched[place] == pairs.any()
        assert whole[place] == (pairs.shape == (128, 128) and bool(pairs.all()))


def reference_tokens(model, name, options, prompt, new_tokens):
    """Greedy tokens of one prompt, the whole text anew at each step, under a dense mask."""
    tokens = prompt.clone()
    for _ in range(new_tokens):
        layout = Layout(None, tokens.shape[1], tokens.shape[1], CPU)
        # A prefix is one only as far as the prompt goes: new tokens are causal.
        limits = {"prefix": min(options["prefix"], prompt.shape[1])} if name == "prefix" else {}
        visible = dense(name, options | limits, layout)
        bias = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -math.inf)
        logits = model(tokens, attention_mask=bias[:, None], use_cache=False).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    return tokens[0, prompt.shape[1] :].tolist()


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "options", "heads"),
    [
        ("causal", {}, (4, 2)),
        ("sliding_window", {"window": 9}, (4, 2)),
        ("sink_window", {"sinks": 3, "window": 6}, (4, 2)),
        ("prefix", {"prefix": 25}, (4, 2)),
        ("dilated", {"window": 5, "dilation": 3}, (4, 2)),
        ("dilated", {"window": 5, "dilation": 3}, (4, 4)),
        ("prefix", {"prefix": 25}, (4, 1)),
    ],
)
def test_generated_tokens_are_those_of_a_dense_float64_model(name, options, heads, monkeypatch):
    # Each mask has to be one that can be traced.
    monkeypatch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", False)
    lengths = [37, 5, 50, 1]
    model = tiny(heads=heads[0], kv_heads=heads[1], dtype=torch.float64)
    model.set_attn_implementation("eager")
    input_ids, mask = batch(lengths)
    backend = MaskedFlex(masks.FACTORIES[name](**options))
    result = generate(model, input_ids, mask, backend=backend, max_new_tokens=5)
    with torch.inference_mode():
        expected = [
            reference_tokens(model, name, options, input_ids[row : row + 1, -length:], 5)
            for row, length in enumerate(lengths)
        ]
    assert result.new_tokens == expected
    assert model.config._attn_implementation == "eager"
    if name != "causal":
        plain = generate(model, input_ids, mask, backend="sdpa", max_new_tokens=5)
        assert plain.new_tokens != expected


def test_sparsity_is_the_share_of_dense_causal_blocks_that_are_skipped():
    layout = Layout(None, 1024, 1024, CPU)  # 8 x 8 blocks, 36 of them causal
    assert block_sparsity_pct(masks.causal(), layout) == 0
    # The diagonal and the one before it: 8 + 7.
    assert block_sparsity_pct(masks.sliding_window(128), layout) == pytest.approx(100 * 21 / 36)
    # With the first column, 6 more.
    assert block_sparsity_pct(masks.sink_window(4, 128), layout) == pytest.approx(100 * 15 / 36)
    # Half the rows see both ways over 4 x 4 blocks: 6 more than causal.
    assert block_sparsity_pct(masks.prefix(512), layout) == pytest.approx(-100 * 6 / 36)


def test_figures_are_those_of_the_last_prefill():
    model, backend = tiny(), MaskedFlex(masks.sliding_window(128))
    assert backend.figures() == {}
    for length, expected in ((1024, 100 * 21 / 36), (128, 0)):
        input_ids, _ = batch([length])
        generate(model, input_ids, backend=backend, max_new_tokens=2)
        assert backend.figures() == {"block_sparsity_pct": pytest.approx(expected)}


def test_masks_over_positions_refuse_a_pruned_cache():
    model, (input_ids, _) = tiny(), batch([40])
    pruning = Pruning(L2(), keep_ratio=0.5, prune_after=0)
    with pytest.raises(ValueError, match="no pruning"):
        generate(
            model,
            input_ids,
            backend=MaskedFlex(masks.sliding_window(8)),
            max_new_tokens=3,
            pruning=pruning,
        )


def test_a_block_mask_of_a_long_prompt_needs_no_tensor_of_all_pairs():
    layout = Layout((0, 1000), 65_536, 65_536, CPU)
    block_mask = block_mask_of(masks.sink_window(4, 4096), layout)
    assert block_mask.shape == (2, 1, 65_536, 65_536)
    assert block_sparsity_pct(masks.sink_window(4, 4096), layout) > 85


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sliding_window", {"window": 0}),
        ("sink_window", {"sinks": -1, "window": 4}),
        ("sink_window", {"sinks": 4, "window": 0}),
        ("prefix", {"prefix": -1}),
        ("dilated", {"window": 4, "dilation": 0}),
    ],
)
def test_sizes_out_of_range_are_refused(name, options):
    with pytest.raises(ValueError, match="or more"):
        masks.FACTORIES[name](**options)


@pytest.mark.model
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_other_lengths_and_steps_are_no_second_compilation():
    """Compiled for a CPU: what is traced, and so what is traced again, is as on a GPU."""
    compiled = torch.compile(flex_attention, dynamic=True, fullgraph=True)
    mask = masks.sink_window(4, 70)

    def run(query_len, stored_len):
        generator = torch.Generator().manual_seed(stored_len)
        query, key, value = (
            torch.randn(2, heads, length, 16, generator=generator)
            for heads, length in ((4, query_len), (2, stored_len), (2, stored_len))
        )
        layout = Layout((0, 101), query_len, stored_len, CPU)
        with torch.inference_mode():
            output = compiled(
                query,
                key,
                value,
                block_mask=block_mask_of(mask, layout),
                scale=0.25,
                enable_gqa=True,
            )
        visible = dense("sink_window", {"sinks": 4, "window": 70}, layout)
        expected = float64_attention(query, key, value, visible, 0.25)
        allowed = attention_tolerance(query, key, value, 0.25)
        assert (output.transpose(1, 2).double() - expected).abs().max() < allowed
        return counters["stats"]["unique_graphs"]

    assert run(300, 300) == run(290, 290)
    assert run(1, 301) == run(1, 302)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("causal", {}),
        ("sliding_window", {"window": 130}),
        ("sink_window", {"sinks": 4, "window": 70}),
        ("prefix", {"prefix": 150}),
        ("dilated", {"window": 50, "dilation": 3}),
    ],
)
def test_compiled_flex_under_every_mask_equals_dense_float64(name, options, dtype):
    for query_len, stored_len, starts in (
        (300, 300, None),
        (301, 301, (0, 131)),
        (64, 257, None),
        (1, 301, None),
        (1, 301, (0, 131)),
    ):
        generator = torch.Generator().manual_seed(stored_len)
        query, key, value = (
            torch.randn(2, heads, length, 64, generator=generator).to("cuda", dtype)
            for heads, length in ((9, query_len), (3, stored_len), (3, stored_len))
        )
        layout = Layout(starts, query_len, stored_len, query.device)
        block_mask = block_mask_of(masks.FACTORIES[name](**options), layout)
        output, kernel = flex.attend_under(query, key, value, block_mask, 0.125)
        expected = float64_attention(query, key, value, dense(name, options, layout), 0.125)
        assert kernel == "flex"
        tolerance = 2e-2 if dtype == torch.bfloat16 else 5e-3
        assert (output.double().cpu() - expected).abs().max() < tolerance
