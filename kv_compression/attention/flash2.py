"""flash2: FlashAttention-2 (arXiv 2307.08691), from the package flash-attn or from torch itself."""

from functools import cache, partial
from importlib import metadata

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import pad, scaled_dot_product_attention

from kv_compression.attention._merge import with_sinks
from kv_compression.layout import Layout


def check(device_type: str, dtype: torch.dtype) -> None:
    """Needs a CUDA GPU and half precision."""
    if device_type != "cuda":
        raise ValueError("flash2 needs a CUDA GPU")
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"flash2 computes in bfloat16 or float16, not in {dtype}")


@cache
def package_version() -> str | None:
    """Version of the package flash-attn, or None where it is not installed."""
    try:
        return metadata.version("flash-attn")
    except metadata.PackageNotFoundError:
        return None


def features() -> frozenset[str]:
    """Windows and sinks; soft caps only in the package."""
    return frozenset({"window", "sinks"} | ({"softcap"} if package_version() else set()))


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, str]:
    """See the package. The kernels know no padding: a padded batch runs row by row, uncopied."""
    version = package_version()
    name = f"flash-attn {version}" if version else "torch flash"
    value_dim = value.shape[-1]
    if value_dim < key.shape[-1]:  # the kernels take heads of one size
        value = pad(value, (0, key.shape[-1] - value_dim))
    one_row = partial(
        _attend_package if version else _attend_torch,
        scaling=scaling,
        window=layout.window,
        softcap=softcap,
        sinks=sinks,
    )
    if layout.left_padding is None:
        return one_row(query, key, value)[..., :value_dim], name
    # Padding stands first, so a row's first query that is a token is that many later.
    new_from = layout.stored_len - layout.query_len
    output = query.new_zeros(query.shape[0], layout.query_len, query.shape[1], value.shape[-1])
    for row, start in enumerate(layout.left_padding):
        first = max(0, start - new_from)
        if first >= layout.query_len:
            continue  # a chunk that is padding in this row
        row_key, row_value = key[row, None, :, start:], value[row, None, :, start:]
        output[row, None, first:] = one_row(query[row, None, :, first:], row_key, row_value)
    return output[..., :value_dim], name


def _attend_package(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    from flash_attn import flash_attn_func

    # Since 2.1 `causal` is aligned to the lower right.
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    result = flash_attn_func(
        q,
        k,
        v,
        softmax_scale=scaling,
        causal=True,
        window_size=(-1 if window is None else window - 1, 0),
        softcap=softcap or 0.0,
        return_attn_probs=sinks is not None,
    )
    if sinks is None:
        return result
    output, lse, _ = result
    return with_sinks(output, lse.transpose(1, 2), sinks)


def _attend_torch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    assert softcap is None, "see `features`"
    query_len, stored_len = query.shape[2], key.shape[2]
    if window is not None or sinks is not None:
        # The operator behind torch's function, which hides the window and the sums.
        q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
        output, lse, *_ = torch.ops.aten._flash_attention_forward(
            q,
            k,
            v,
            None,
            None,
            query_len,
            stored_len,
            0.0,
            True,
            False,
            scale=scaling,
            window_size_left=None if window is None else window - 1,
            window_size_right=0,
        )
        return output if sinks is None else with_sinks(output, lse.transpose(1, 2), sinks)
    is_chunk = 1 < query_len < stored_len
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        output = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=causal_lower_right(query_len, stored_len) if is_chunk else None,
            is_causal=query_len == stored_len and query_len > 1,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return output.transpose(1, 2)
