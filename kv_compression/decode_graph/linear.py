"""Few rows times a weight matrix, at the speed at which the weights can be read.

One Triton kernel for all projections of a decode step. What a decoder layer does around them is
part of it: RMSNorm of the input, SiLU of the gate, the residual. Weights may be floats, int8 rows
(bitsandbytes' LLM.int8()) or NF4/FP4 blocks (its 4-bit format); sums are taken in float32.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton

from kv_compression.decode_graph.dependent_launch import options as launch_options
from kv_compression.decode_graph.linear_kernels import normalize, project
from kv_compression.decode_graph.weights import KINDS, Weight

MOST_ROWS = 16
"""Rows that the kernel takes at once; beyond them cuBLAS's own products are as fast."""

MOST_ROWS_OF_4BIT = 8
"""The same with 4-bit weights, whose products are not for the tensor cores."""


@dataclass(frozen=True)
class Tile:
    """How one program's part of the weight is laid out."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


@cache
def tile_for(kind: str, rows: int, out_features: int, in_features: int) -> Tile:
    """The tile that was fastest for products of this kind (`benchmarks/decode_kernels.py`)."""
    most = triton.next_power_of_2(in_features)
    if kind == "4bit" and rows == 1:
        return Tile(16, min(most, 1024), num_warps=4, num_stages=2)
    if kind == "4bit":
        return Tile(8, min(most, 512), num_warps=8 if in_features > 8192 else 4, num_stages=2)
    if rows == 1 and kind == "int8":
        return Tile(8, min(most, 512), num_warps=4, num_stages=2)
    if rows == 1:
        return Tile(4, min(most, 2048), num_warps=4 if in_features > 8192 else 8, num_stages=2)
    if in_features > 8192:
        return Tile(32, min(most, 256), num_warps=4, num_stages=5)
    return Tile(64, min(most, 128), num_warps=4, num_stages=3 if out_features > 8192 else 5)


def normalized(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of the rows of x, (rows, K), with the gain (K,)."""
    out = torch.empty_like(x)
    width = x.shape[1]
    normalize[(x.shape[0],)](
        x, gain, out, eps, K=width, KP=triton.next_power_of_2(width), **launch_options(x.device)
    )
    return out


def linear(
    x: torch.Tensor,
    weights: tuple[Weight, ...],
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """x (rows, K) times up to three weights of one kind, side by side: (rows, sum of their N).

    norm: (K,) gain of an RMSNorm of x with `eps`.
    gated: SiLU of the first product times the second, (rows, N).
    residual: added to the result, of its shape.
    """
    rows, in_features = x.shape
    first = weights[0]
    if norm is not None and rows > 1:
        # One row is normalized on the way; more would be so by every program again.
        x, norm = normalized(x, norm, eps), None
    tile = tile or tile_for(first.kind, rows, first.out_features, in_features)
    n = [weight.out_features for weight in weights] + [0] * (3 - len(weights))
    out = x.new_empty(rows, n[0] if gated else sum(n))
    tiles = [triton.cdiv(each, tile.rows) for each in (n[:1] if gated else n)]
    least_rows = triton.next_power_of_2(rows) if rows == 1 or first.kind == "4bit" else MOST_ROWS
    project[(sum(tiles),)](
        x,
        x if norm is None else norm,
        eps,
        out,
        x if residual is None else residual,
        first.table,
        first.code,
        first.nested_code,
        *(
            tensor
            for weight in (*weights, *(first,) * (3 - len(weights)))
            for tensor in weight.tensors()
        ),
        rows=rows,
        N_0=n[0],
        N_1=n[1],
        N_2=n[2],
        K=in_features,
        KIND=KINDS.index(first.kind),
        NESTED=first.nested is not None,
        NORM=norm is not None,
        GATED=gated,
        RESIDUAL=residual is not None,
        BIAS=first.bias is not None,
        QUICK=x.is_cuda and x.dtype == torch.bfloat16,
        M=least_rows,
        BN=tile.rows,
        BK=tile.columns,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **launch_options(x.device),
    )
    return out
