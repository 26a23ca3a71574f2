"""flex: FlexAttention (arXiv 2412.05496), compiled on CUDA, as written elsewhere."""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from kv_compression.attention._merge import with_sinks
from kv_compression.layout import Layout

# Each mask, dtype and shape of heads is compiled for itself, and a process may meet any number of
# them. Torch's limits, 8 for a function and 256 for all its versions, would end it with an error.
_NO_LIMIT = sys.maxsize


def check(device_type: str, dtype: torch.dtype) -> None:
    """Runs everywhere."""


@cache
def _function(compiled: bool) -> Callable[..., Any]:
    if not compiled:
        function: Callable[..., Any] = flex_attention
        return function
    torch._dynamo.config.recompile_limit = _NO_LIMIT
    torch._dynamo.config.accumulated_recompile_limit = _NO_LIMIT
    # A full graph or an error: torch would go on with the unfused function and say nothing of it.
    # Dynamic from the start, so that a second prompt length is no second compilation, which would
    # fall into a counted request.
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def features() -> frozenset[str]:
    """All that models ask for."""
    return frozenset({"window", "softcap", "sinks"})


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, str]:
    """See the package."""
    needs_mask = layout.query_len > 1 or layout.left_padding is not None
    mask = layout.block_mask if needs_mask else None
    return attend_under(query, key, value, mask, scaling, softcap, sinks)


def attend_under(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_mask: BlockMask | None,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, str]:
    """What `attend` does, under any block mask; None lets every query see every key."""
    # Compiling for a CPU needs a C++ compiler, which a bare machine does not have. Inside a
    # compiled forward the function becomes a part of that.
    compiled = query.device.type == "cuda" and not torch.compiler.is_compiling()
    result = _function(compiled)(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap, query.device),
        block_mask=block_mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=None if sinks is None else AuxRequest(lse=True),
    )
    kernel = "flex" if compiled else "flex (not compiled)"
    if sinks is None:
        return result.transpose(1, 2), kernel
    output, sums = result
    return with_sinks(output.transpose(1, 2), sums.lse.transpose(1, 2), sinks), kernel


@cache
def _capped(softcap: float, device: torch.device) -> Callable[..., torch.Tensor]:
    # A tensor: a number would become a symbol, which a score_mod cannot be compiled with.
    cap = torch.tensor(softcap, device=device)

    def score_mod(
        score: torch.Tensor,
        batch: torch.Tensor,
        head: torch.Tensor,
        q_idx: torch.Tensor,
        kv_idx: torch.Tensor,
    ) -> torch.Tensor:
        return torch.tanh(score / cap) * cap

    return score_mod
