"""The product of a few tokens with their experts' weights, as a Triton kernel."""

import triton
import triton.language as tl


@triton.jit
def project_chosen(
    x,
    weights,
    bias,
    experts,
    out,
    N,
    K,
    pairs_per_row,
    stride_expert,
    stride_n,
    stride_k,
    BIAS: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """One program: BN channels of one token and one of its experts."""
    pair = tl.program_id(1)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    expert = tl.load(experts + pair).to(tl.int64)
    matrix = weights + expert * stride_expert + n[:, None] * stride_n
    row = x + (pair // pairs_per_row) * K
    sums = tl.zeros((BN, BK), tl.float32)
    for first in range(0, K, BK):
        k = first + tl.arange(0, BK)
        inside = (n[:, None] < N) & (k[None, :] < K)
        part = tl.load(matrix + k[None, :] * stride_k, mask=inside, other=0.0)
        values = tl.load(row + k, mask=k < K, other=0.0)
        sums += part.to(tl.float32) * values.to(tl.float32)[None, :]
    total = tl.sum(sums, axis=1)
    if BIAS:
        total += tl.load(bias + expert * N + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(out + pair * N + n, total.to(out.dtype.element_ty), mask=n < N)
