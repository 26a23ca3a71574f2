"""Every backend against float64: prefill, chunks, single queries, padding, grouped heads."""

import functools
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_compression import attention
from kv_compression.layout import Layout
from tests import reference

HEADS = [(4, 4), (6, 2), (8, 1), (9, 3)]  # query heads, key/value heads: MHA, GQA, MQA


def worst_error(backend, shape, dtype, device, seed, window=None, softcap=None, has_sinks=False):
    """Largest error of any token's output, what rounding in float32 allows, the kernel's name."""
    heads, head_dim, query_len, stored, starts, batch = shape
    generator = torch.Generator().manual_seed(seed)

    def random(n_heads, length):
        tensor = torch.randn(batch, n_heads, length, head_dim, generator=generator)
        return tensor.to(device, dtype)

    query, key, value = (
        random(heads[0], query_len),
        random(heads[1], stored),
        random(heads[1], stored),
    )
    scaling = head_dim**-0.5
    layout = Layout(starts, query_len, stored, query.device, window)
    extras = {} if softcap is None else {"softcap": softcap}
    if has_sinks:
        extras["sinks"] = torch.randn(heads[0], generator=generator).to(device, dtype)
    output, kernel = attention.backend(backend).attend(query, key, value, layout, scaling, **extras)
    expected = reference.attention(query, key, value, starts, scaling, window, **extras)
    assert output.shape == expected.shape
    assert output.isfinite().all()
    tokens = ~expected.isnan()
    error = (output.double().cpu() - expected)[tokens].abs().max().item()
    return error, reference.attention_tolerance(query, key, value, scaling), kernel


@st.composite
def shapes(draw, max_stored=70):
    stored = draw(st.integers(1, max_stored))
    query_len = draw(st.sampled_from([1, stored, draw(st.integers(1, stored))]))
    batch = draw(st.integers(1, 3))
    # The last token of a row is always a token.
    starts = tuple(draw(st.integers(0, stored - 1)) for _ in range(batch))
    heads, head_dim = draw(st.sampled_from(HEADS)), draw(st.sampled_from([16, 32, 64]))
    return heads, head_dim, query_len, stored, starts if any(starts) else None, batch


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex"])
@settings(max_examples=30, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 2**31))
def test_backend_matches_float64(backend, shape, seed):
    error, allowed, _ = worst_error(backend, shape, torch.float32, "cpu", seed)
    assert error < allowed


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex"])
@pytest.mark.parametrize("query_len", [300, 129, 128, 1])
@pytest.mark.parametrize("starts", [None, (0, 131), (128, 257)])
def test_backend_matches_float64_across_blocks(backend, query_len, starts):
    shape = ((4, 2), 16, query_len, 300, starts, 2)
    error, allowed, _ = worst_error(backend, shape, torch.float32, "cpu", seed=1)
    assert error < allowed


# What models ask for besides plain attention: window, soft cap, sinks.
ASKED = [(7, None, False), (130, 2.0, False), (1, None, True), (None, 0.7, True)]


def wanted(backend, asked):
    """Whether the backend does all that is asked for."""
    names = [
        name for name, value in zip(("window", "softcap", "sinks"), asked, strict=True) if value
    ]
    return set(names) <= attention.features(attention.backend(backend))


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex"])
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize(("query_len", "starts"), [(300, None), (140, (0, 131)), (5, (296, 0))])
def test_windows_soft_caps_and_sinks_match_float64(monkeypatch, backend, asked, query_len, starts):
    if not wanted(backend, asked):
        assert backend == "sdpa"
        return
    monkeypatch.setattr(attention.backend("sdpa"), "_WINDOW_ROWS", 64)
    shape = ((4, 2), 16, query_len, 300, starts, 2)
    error, allowed, _ = worst_error(backend, shape, torch.float32, "cpu", 1, *asked)
    assert error < allowed


GPU_SHAPES = [  # query length, stored length, starts; each new one is compiled for flex
    (1, 131, None),
    (131, 131, None),
    (64, 257, None),
    (300, 300, (150, 299)),
    (64, 257, (0, 250)),
    (1, 257, (256, 100)),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("backend", attention.names())
def test_backend_matches_float64_on_gpu(backend, dtype, heads):
    try:
        attention.backend(backend).check("cuda", dtype)
    except ValueError:
        pytest.skip("not for this dtype")
    if backend == "flex" and heads != (9, 3):
        pytest.skip("compiling takes long; one head count stands for all")
    for query_len, stored, starts in GPU_SHAPES:
        shape = (heads, 64, query_len, stored, starts, 2)
        error, _, kernel = worst_error(backend, shape, dtype, "cuda", seed=stored)
        tolerance = 2e-2 if dtype == torch.bfloat16 else 5e-3 if backend == "flex" else 1e-4
        assert error < tolerance, (shape, kernel)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("backend", attention.names())
def test_windows_soft_caps_and_sinks_match_float64_on_gpu(backend, asked, dtype):
    try:
        attention.backend(backend).check("cuda", dtype)
    except ValueError:
        pytest.skip("not for this dtype")
    if not wanted(backend, asked):
        pytest.skip("not by this backend")
    for query_len, stored, starts in ((300, 300, None), (64, 257, (0, 250)), (1, 131, None)):
        window = None if query_len == 1 else asked[0]
        shape = ((6, 2), 64, query_len, stored, starts, 2)
        found = worst_error(backend, shape, dtype, "cuda", stored, window, *asked[1:])
        tolerance = 2e-2 if dtype == torch.bfloat16 else 5e-3 if backend == "flex" else 1e-4
        assert found[0] < tolerance, (shape, found[2])


def test_kernel_names():
    shape = ((4, 2), 16, 5, 5, None, 1)
    kernels = {
        name: worst_error(name, shape, torch.float32, "cpu", 0)[2]
        for name in ("eager", "sdpa", "flex")
    }
    assert kernels == {
        "eager": "eager",
        "sdpa": "torch flash (cpu)",
        "flex": "flex (not compiled)",
    }


def test_flash2_refuses_cpu_and_float32():
    with pytest.raises(ValueError, match="GPU"):
        attention.backend("flash2").check("cpu", torch.bfloat16)
    with pytest.raises(ValueError, match="bfloat16"):
        attention.backend("flash2").check("cuda", torch.float32)


def test_unknown_backend_lists_the_choices():
    with pytest.raises(ValueError, match="eager, flash2, flex, sdpa"):
        attention.backend("layout")


@settings(max_examples=40, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 2**31))
def test_flash2_handles_rows_and_chunks_like_the_others(shape, seed):
    """Torch's flash kernel for CPUs stands in for the GPU's: the same calls, without a GPU."""
    error, allowed, kernel = worst_error("flash2", shape, torch.float32, "cpu", seed)
    assert kernel == "torch flash"
    assert error < allowed


def test_flash2_uses_the_package_where_it_is_installed(monkeypatch):
    """The package cannot be installed here: a stand-in with its layout and alignment."""

    def flash_attn_func(q, k, v, softmax_scale, causal, window_size, softcap, return_attn_probs):
        assert causal
        assert (window_size, softcap, return_attn_probs) == ((-1, 0), 0.0, False)
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        return reference.attention(q, k, v, None, softmax_scale).float()

    stand_in = types.SimpleNamespace(flash_attn_func=flash_attn_func)
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in)
    monkeypatch.setattr(attention.backend("flash2"), "package_version", lambda: "2.8.3")
    shape = ((4, 2), 16, 7, 19, (0, 15), 2)
    error, allowed, kernel = worst_error("flash2", shape, torch.float32, "cpu", seed=0)
    assert kernel == "flash-attn 2.8.3"
    assert error < allowed


def test_flex_compiles_any_number_of_masks_in_one_process(monkeypatch):
    """Torch would end the process at the 8th, and at the 256th of all."""
    flex = attention.backend("flex")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    flex._function.cache_clear()
    limits = {"recompile_limit": 1, "accumulated_recompile_limit": 1}
    query = torch.randn(1, 2, 3, 16)
    try:
        with torch._dynamo.config.patch(limits):
            for starts in (None, (1,)):
                block_mask = Layout(starts, 3, 3, query.device).block_mask
                flex._function(compiled=True)(query, query, query, block_mask=block_mask)
    finally:
        flex._function.cache_clear()
