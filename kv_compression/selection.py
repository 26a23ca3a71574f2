"""Which of the stored tokens stay, given a score for each: counts, ties, order and padding."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Selection:
    """Tokens to keep.

    index: (B, H, S_kept) int64, ascending along the last dimension. A row that keeps fewer tokens
        than the longest row is filled up at its beginning; `starts` says how far.
    starts: for each row the first index that is a kept token, or None when that is 0 in every row.
    """

    index: torch.Tensor
    starts: tuple[int, ...] | None


def kept_count(length: int, keep_ratio: float) -> int:
    """Number of tokens kept of `length`: ceil(keep_ratio * length), so never 0 of 1 or more."""
    return min(length, math.ceil(keep_ratio * length))


def leading(starts: Sequence[int]) -> tuple[int, ...] | None:
    """The same starts as a tuple, or None when no row starts later than 0."""
    return tuple(starts) if any(starts) else None


def select(
    scores: torch.Tensor, starts: tuple[int, ...] | None, counts: Sequence[int]
) -> Selection:
    """Keep the `counts[b]` highest-scoring tokens of each head of row b, in their original order.

    scores: (B, H, S) float32. Of equal scores the earlier token is kept.
    starts: for each row the first index that holds a token; what stands before is padding, which
        is never kept. None: no padding.
    """
    batch, heads, stored = scores.shape
    most = max(counts)
    if starts is not None:
        first = torch.tensor(starts, device=scores.device)
        padding = torch.arange(stored, device=scores.device) < first[:, None]
        scores = scores.masked_fill(padding[:, None], -torch.inf)
    # Stable, so that equal scores stay in the order of the text.
    index = scores.sort(dim=-1, descending=True, stable=True).indices[..., :most]
    new_starts = leading([most - count for count in counts])
    if new_starts is not None:
        rank = torch.arange(most, device=scores.device)
        surplus = rank >= torch.tensor(counts, device=scores.device)[:, None]
        index = index.masked_fill(surplus[:, None], -1)
    index = index.sort(dim=-1).values.clamp_(min=0)
    assert index.shape == (batch, heads, most)
    return Selection(index, new_starts)
