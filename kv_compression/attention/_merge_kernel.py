"""`_merge` on a GPU: both parts are read once, and the result takes the place of the first."""

import torch
import triton
import triton.language as tl

_ROWS = 16  # queries of one program


@triton.jit
def _merge(
    output, lse, other, other_lse, heads, queries, count,
    batch_stride, head_stride, query_stride, other_batch, other_head, other_query,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS of the B * H * Q queries, which `lse` and `other_lse` hold in this order."""
    line = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = line < count
    query, head, row = line % queries, line // queries % heads, line // queries // heads
    d = tl.arange(0, DP)[None, :]
    mask = inside[:, None] & (d < D)
    ours = output + (row * batch_stride + head * head_stride + query * query_stride)[:, None] + d
    theirs = other + (row * other_batch + head * other_head + query * other_query)[:, None] + d
    share = tl.sigmoid(
        tl.load(other_lse + line, mask=inside, other=0.0)
        - tl.load(lse + line, mask=inside, other=0.0)
    )[:, None]
    x = tl.load(ours, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(theirs, mask=mask, other=0.0).to(tl.float32)
    tl.store(ours, (x + (y - x) * share).to(output.dtype.element_ty), mask=mask)


def merge_(
    output: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor
) -> torch.Tensor:
    """Arguments as of `_merge.merged`; `output` is overwritten and returned."""
    batch, heads, queries, head_dim = output.shape
    assert output.stride(3) == other.stride(3) == 1
    count = batch * heads * queries
    # Triton goes by the current device, which need not be the model's.
    with torch.cuda.device(output.device):
        _merge[(triton.cdiv(count, _ROWS),)](
            output,
            lse.contiguous(),
            other,
            other_lse.contiguous(),
            heads,
            queries,
            count,
            *output.stride()[:3],
            *other.stride()[:3],
            D=head_dim,
            DP=triton.next_power_of_2(head_dim),
            ROWS=_ROWS,
        )
    return output
