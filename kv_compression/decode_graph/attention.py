"""Attention of one new token a row over a stored cache, split along its length (Flash-Decoding).

Where a layer's keys and values lie, how many there are and where each row begins is read from a
`LayerTable` on the device, so one captured launch serves every cache; of heads that store different
numbers of tokens, longer ones have more programs. A group's query heads are
rows of one product, so that a key is read once; nothing is masked but the end of a part's last
block. The new token's own key and value take part from registers and are written behind the others.

After Dao et al., "Flash-Decoding for long-context inference" (2023).
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kv_compression.decode_graph.attention_kernels import (
    attend_part,
    merge_parts,
    merge_ragged_parts,
)
from kv_compression.decode_graph.dependent_launch import options as launch_options
from kv_compression.decode_graph.table import LayerTable, processors, programs


@dataclass(frozen=True)
class WorkSplit:
    """How the stored tokens are shared out among programs.

    tokens: in a step of a program's loop.
    per_processor: programs for each of the GPU's multiprocessors, where heads store as many.
    """

    tokens: int = 64
    per_processor: int = 1
    num_warps: int = 4
    num_stages: int = 3


@dataclass(frozen=True)
class HeadTransform:
    """What becomes of a query's or key's heads before attention.

    cos, sin: (B, R), the rotation of the first R channels.
    q_gain, k_gain: (D,), the gains of an RMSNorm of each head with `eps`; None for no norm.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    q_gain: torch.Tensor | None = None
    k_gain: torch.Tensor | None = None
    eps: float = 0.0


_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: LayerTable,
    layer: int,
    *,
    head_dim: int,
    scaling: float,
    transform: HeadTransform | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    split: WorkSplit = WorkSplit(),
) -> torch.Tensor:
    """The output, (B, Hq * D), of a new token a row; its key and value are stored in the cache.

    q (B, Hq * D), k and v (B, H * D), rows of which the last dimension is contiguous.
    transform: the rotation, and the norm, that q and k still need; None when they had them.
    softcap, sinks: see `kv_compression.attention.Backend`.
    """
    batch, heads, pairs = k.shape[0], k.shape[1] // head_dim, table.pairs
    query_heads = q.shape[1] // head_dim
    count = max(1, split.per_processor * processors(q.device) // (batch * heads))
    grid = (batch * heads, count) if pairs is None else (programs(q.device, batch * heads),)
    parts = math.prod(grid) * query_heads // heads
    part_out = q.new_empty(parts, head_dim, dtype=torch.float32)
    part_max = q.new_empty(parts, dtype=torch.float32)
    part_sum = torch.empty_like(part_max)
    padded_dim, group = triton.next_power_of_2(head_dim), query_heads // heads
    rotation = (q, q) if transform is None else (transform.cos, transform.sin)
    gains: tuple[torch.Tensor, torch.Tensor] = (q, q)
    has_norm = transform is not None and transform.q_gain is not None
    if transform is not None and transform.q_gain is not None and transform.k_gain is not None:
        gains = (transform.q_gain, transform.k_gain)
    attend_part[grid](
        q,
        k,
        v,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        *rotation,
        *gains,
        0.0 if transform is None else transform.eps,
        scaling,
        softcap or 1.0,
        table.addresses,
        table.starts,
        *((table.starts,) * 3 if pairs is None else (pairs.places, pairs.splits, pairs.owners)),
        table.added,
        layer,
        part_out,
        part_max,
        part_sum,
        batch,
        count if pairs is None else pairs.owners.shape[1],
        0 if pairs is None else pairs.places.shape[1],
        0 if pairs is None else pairs.places.shape[1] // batch,
        RAGGED=pairs is not None,
        H=heads,
        G=group,
        D=head_dim,
        R=0 if transform is None else transform.cos.shape[-1],
        NORM=has_norm,
        CAPPED=softcap is not None,
        DP=padded_dim,
        GP=max(16, triton.next_power_of_2(group)),
        BN=split.tokens,
        TYPE=_TYPES[q.dtype],
        num_warps=split.num_warps,
        num_stages=split.num_stages,
        **launch_options(q.device),
    )
    out = q.new_empty(batch, query_heads * head_dim)
    found = part_out, part_max, part_sum, part_sum if sinks is None else sinks, out
    options = {"D": head_dim, "DP": padded_dim, "SINKS": sinks is not None}
    options |= launch_options(q.device)
    most = triton.next_power_of_2(math.prod(grid) // (batch * heads))
    if pairs is None:
        merge_parts[(batch * query_heads,)](
            *found, query_heads, PARTS=count, PARTS_P=most, **options
        )
    else:
        merge_ragged_parts[(batch * query_heads,)](
            *found,
            pairs.splits,
            layer,
            pairs.places.shape[1],
            pairs.places.shape[1] // batch,
            query_heads,
            G=group,
            PARTS=most,
            **options,
        )
    return out
