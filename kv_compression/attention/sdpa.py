"""sdpa: torch's scaled_dot_product_attention, with the kernel that torch itself chooses."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from kv_compression.attention._merge import merged
from kv_compression.layout import BLOCK, Layout

_KERNEL_OF_OPERATOR = {
    "_scaled_dot_product_flash_attention": "torch flash",
    "_scaled_dot_product_flash_attention_for_cpu": "torch flash (cpu)",
    "_scaled_dot_product_efficient_attention": "efficient",
    "_scaled_dot_product_cudnn_attention": "cudnn",
    "_scaled_dot_product_fused_attention_overrideable": "overrideable",
}

# Queries under a window that are computed at once, where the window is not wider.
_WINDOW_ROWS = 512

_Kind = tuple[object, ...]
_kernel_of_call: dict[_Kind, str] = {}


def check(device_type: str, dtype: torch.dtype) -> None:
    """Runs everywhere."""


def features() -> frozenset[str]:
    """Windows; torch's function has neither soft caps nor sinks."""
    return frozenset({"window"})


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scaling: float
) -> tuple[torch.Tensor, str]:
    """See the package."""
    if layout.window is not None and layout.query_len > max(layout.window, _WINDOW_ROWS):
        return _in_blocks(query, key, value, layout, scaling)
    if _suits_cudnn(query, key, layout):
        return _cudnn_in_two(query, key, value, layout, scaling).transpose(1, 2), "cudnn"
    batch, query_heads, query_len, head_dim = query.shape
    groups = query_heads // key.shape[1]
    mask, is_plain = None, layout.left_padding is None and layout.window is None
    if not is_plain:
        mask = layout.mask
    elif query_len > 1 and not layout.is_square:
        mask = causal_lower_right(query_len, layout.stored_len)
    is_causal = mask is None and query_len > 1
    # The fused kernels that take a mask or float32 do not take grouped heads, and without a fused
    # kernel all scores would exist at once; a CPU's kernel repeats the keys itself, at every step.
    shares_keys = is_plain and query.dtype != torch.float32
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
    kind = _kind(query.device, query.dtype, head_dim, groups, layout)
    if kind in _kernel_of_call:
        output = call()
    else:
        with _OperatorNames() as operators:
            output = call()
        known = (_KERNEL_OF_OPERATOR.get(name) for name in operators.seen)
        _kernel_of_call[kind] = next((kernel for kernel in known if kernel), "math")
    output = output.reshape(batch, query_heads, query_len, -1)
    return output.transpose(1, 2), _kernel_of_call[kind]


def _in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scaling: float
) -> tuple[torch.Tensor, str]:
    """(B, Q, Hq, D) of queries under a window, block by block with the keys that a block can see.

    So no mask of all pairs is made, and little of what is computed is thrown away.
    """
    assert layout.window is not None
    rows, past_len = max(layout.window, _WINDOW_ROWS), layout.stored_len - layout.query_len
    outputs, kernel = [], ""
    for begin in range(0, layout.query_len, rows):
        end = min(begin + rows, layout.query_len)
        first, last = max(0, past_len + begin + 1 - layout.window), past_len + end
        padding = layout.left_padding and tuple(max(0, row - first) for row in layout.left_padding)
        part = Layout(padding, end - begin, last - first, layout.device, layout.window)
        keys, values = key[:, :, first:last], value[:, :, first:last]
        output, kernel = attend(query[:, :, begin:end], keys, values, part, scaling)
        outputs.append(output)
    return torch.cat(outputs, dim=1), kernel


def _kind(
    device: torch.device, dtype: torch.dtype, head_dim: int, groups: int, layout: Layout
) -> _Kind:
    """What torch's choice of a kernel depends on."""
    is_plain = layout.left_padding is None and layout.window is None
    return device, dtype, head_dim, groups, layout.query_len > 1, layout.is_square, is_plain


def _suits_cudnn(query: torch.Tensor, key: torch.Tensor, layout: Layout) -> bool:
    """Whether this is a chunk that cuDNN's kernel may do: torch chose it where it was free to.

    cuDNN plans anew for every shape, so chunks of odd lengths, such as the rest of a prompt, are
    left to the others.
    """
    past_len = layout.stored_len - layout.query_len
    is_regular = past_len > 0 and past_len % BLOCK == 0 and layout.query_len % BLOCK == 0
    if not is_regular or layout.left_padding is not None or layout.window is not None:
        return False
    square = replace(layout, stored_len=layout.query_len)
    groups = query.shape[1] // key.shape[1]
    kind = _kind(query.device, query.dtype, query.shape[-1], groups, square)
    return _kernel_of_call.get(kind) == "cudnn"


def _cudnn_in_two(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scaling: float
) -> torch.Tensor:
    """(B, Hq, Q, D). cuDNN's causal mask is aligned to the upper left, so a chunk takes two calls:

    the keys before it, all of them seen, and its own.
    """
    past_len = layout.stored_len - layout.query_len
    parts: list[torch.Tensor] = []
    for keys, is_causal in ((slice(past_len), False), (slice(past_len, None), True)):
        output, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            query,
            key[:, :, keys],
            value[:, :, keys],
            attn_bias=None,
            compute_log_sumexp=True,
            is_causal=is_causal,
            scale=scaling,
        )
        parts += output, lse.view(*query.shape[:3], 1)
    return merged(*parts)


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
