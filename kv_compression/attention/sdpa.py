"""sdpa: torch's scaled_dot_product_attention, with the kernel that torch itself chooses."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from kv_compression.layout import Layout

_KERNEL_OF_OPERATOR = {
    "_scaled_dot_product_flash_attention": "torch flash",
    "_scaled_dot_product_flash_attention_for_cpu": "torch flash (cpu)",
    "_scaled_dot_product_efficient_attention": "efficient",
    "_scaled_dot_product_cudnn_attention": "cudnn",
    "_scaled_dot_product_fused_attention_overrideable": "overrideable",
}

_kernel_of_call: dict[tuple[object, ...], str] = {}


def check(device_type: str, dtype: torch.dtype) -> None:
    """Runs everywhere."""


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scaling: float
) -> tuple[torch.Tensor, str]:
    """See the package."""
    batch, query_heads, query_len, head_dim = query.shape
    groups = query_heads // key.shape[1]
    mask = None
    if layout.starts is not None:
        mask = layout.mask
    elif query_len > 1 and not layout.is_square:
        mask = causal_lower_right(query_len, layout.stored_len)
    is_causal = mask is None and query_len > 1
    # The fused kernels that take a mask or float32 do not take grouped heads, and without a fused
    # kernel all scores would exist at once; a CPU's kernel repeats the keys itself, at every step.
    shares_keys = layout.starts is None and query.dtype != torch.float32
    if query_len == 1 and not (shares_keys and query.is_cuda):
        # One token sees the same keys in all heads of a group, which thus are rows of one head.
        query = query.reshape(batch, key.shape[1], groups, head_dim)
    elif not shares_keys:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    call = partial(
        scaled_dot_product_attention,
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=is_causal,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    kind = (
        query.device,
        query.dtype,
        head_dim,
        groups,
        query_len > 1,
        layout.is_square,
        mask is None,
    )
    if kind in _kernel_of_call:
        output = call()
    else:
        with _OperatorNames() as operators:
            output = call()
        known = (_KERNEL_OF_OPERATOR.get(name) for name in operators.seen)
        _kernel_of_call[kind] = next((kernel for kernel in known if kernel), "math")
    output = output.reshape(batch, query_heads, query_len, -1)
    return output.transpose(1, 2), _kernel_of_call[kind]


class _OperatorNames(TorchDispatchMode):
    """Notes the operators that run: torch does not say otherwise which kernel it chose."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.scaled_dot_product_attention.default:
            # In inference mode this arrives whole; look inside, where the choice is made.
            with self:
                return func.decompose(*args, **(kwargs or {}))
        self.seen.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))
