"""Attention over two sets of keys, put together, against attention over both in float64."""

import pytest
import torch

from kv_compression.attention import _merge, sdpa
from kv_compression.layout import Layout
from tests import reference


def cpu_attention(query, key, value, is_causal, scale):
    """Output and log-sum-exp of torch's kernel for the CPU."""
    groups = query.shape[1] // key.shape[1]
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query,
        key.repeat_interleave(groups, 1),
        value.repeat_interleave(groups, 1),
        is_causal=is_causal,
        scale=scale,
    )
    return output, lse


@pytest.mark.parametrize("scale", [0.25, 4.0])  # 4: nearly all weight on one key
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (8, 1)])
@pytest.mark.parametrize(("past", "new"), [(1, 1), (256, 128), (37, 5), (5, 90)])
def test_two_parts_are_the_whole(past, new, heads, scale):
    generator = torch.Generator().manual_seed(past)
    query = torch.randn(2, heads[0], new, 16, generator=generator)
    key, value = torch.randn(2, 2, heads[1], past + new, 16, generator=generator)
    earlier = cpu_attention(query, key[:, :, :past], value[:, :, :past], False, scale)
    own = cpu_attention(query, key[:, :, past:], value[:, :, past:], True, scale)
    result = _merge.merged(earlier[0], earlier[1][..., None], own[0], own[1][..., None])
    expected = reference.attention(query, key, value, None, scale)
    allowed = reference.attention_tolerance(query, key, value, scale)
    assert (result.transpose(1, 2).double() - expected).abs().max() < allowed


def test_parts_in_half_precision_are_merged_in_float32():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 1, 2, 300, 8, generator=generator).bfloat16()
    lse, other_lse = torch.randn(2, 1, 2, 300, 1, generator=generator)
    result = _merge.merged(one, lse, other, other_lse)
    share = torch.softmax(torch.stack([lse, other_lse]).double(), dim=0)
    expected = (share[0] * one.double() + share[1] * other.double()).bfloat16()
    assert result.dtype == torch.bfloat16
    assert (result == expected).float().mean() > 0.99  # what is left is a last bit


@pytest.mark.parametrize("lse_dims", [3, 4])
def test_a_chunk_goes_to_cudnn_in_two_calls_where_torch_chose_it(lse_dims, monkeypatch):
    calls = []

    def cudnn(query, key, value, attn_bias, compute_log_sumexp, is_causal, scale):
        calls.append((key.shape[2], is_causal))
        output, lse = cpu_attention(query, key, value, is_causal, scale)
        return output, lse if lse_dims == 3 else lse[..., None], None

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", cudnn)
    monkeypatch.setattr(sdpa, "_kernel_of_call", {})
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 128, 16, generator=generator)
    key, value = torch.randn(2, 2, 2, 384, 16, generator=generator)
    square = Layout(None, 128, 128, query.device)
    chunk = Layout(None, 128, 384, query.device)
    expected = reference.attention(query, key, value, None, 0.25)
    allowed = reference.attention_tolerance(query, key, value, 0.25)

    sdpa.attend(query, key[:, :, :128], value[:, :, :128], square, 0.25)
    output, kernel = sdpa.attend(query, key, value, chunk, 0.25)
    assert (kernel != "cudnn", calls) == (True, [])
    assert (output.double() - expected).abs().max() < allowed

    for kind in sdpa._kernel_of_call:
        sdpa._kernel_of_call[kind] = "cudnn"
    output, kernel = sdpa.attend(query, key, value, chunk, 0.25)
    assert (kernel, calls) == ("cudnn", [(256, False), (128, True)])
    assert (output.double() - expected).abs().max() < allowed
    for odd in (Layout(None, 127, 384, query.device), Layout((0, 3), 128, 384, query.device)):
        assert not sdpa._suits_cudnn(query[:, :, : odd.query_len], key, odd)
