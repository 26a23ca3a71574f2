"""Which of the stored tokens stay, given a score for each: counts, ties, order and padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Selection:
    """Tokens to keep.

    index: (B, H, S_kept) int64, ascending along the last dimension. A row that keeps fewer tokens
        than the longest row is filled up at its beginning; `left_padding` says how far.
    left_padding: for each row the index of its first kept token; None when that is 0 in every row.
    """

    index: torch.Tensor
    left_padding: tuple[int, ...] | None


@dataclass(frozen=True)
class PooledSelection:
    """Tokens to keep of heads that need not keep equally many.

    index: (B, T) int64, head * S + token, ascending. A row that keeps fewer tokens than another is
        filled up at its beginning.
    totals: how many each row keeps, all heads together.
    """

    index: torch.Tensor
    totals: tuple[int, ...]

    def counts(self, heads: int, stored: int) -> torch.Tensor:
        """(B, H) int64: how many of each head's `stored` tokens stay."""
        totals = to_device(self.totals, self.index.device)[:, None]
        width = self.index.shape[1]
        is_kept = torch.arange(width, device=self.index.device) >= width - totals
        counts = is_kept.new_zeros(len(totals), heads, dtype=torch.int64)
        return counts.scatter_add_(1, self.index // stored, is_kept.long())


def padding_or_none(left_padding: Sequence[int]) -> tuple[int, ...] | None:
    """The same left_padding as a tuple, or None when no row left_padding later than 0."""
    return tuple(left_padding) if any(left_padding) else None


def to_device(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """(B,) int64 there, without waiting for what the device is doing."""
    return torch.tensor(numbers).to(device, non_blocking=True)


def select(
    scores: torch.Tensor, left_padding: tuple[int, ...] | None, counts: Sequence[int]
) -> Selection:
    """Keep the `counts[b]` highest-scoring tokens of each head of row b, in their original order.

    scores: (B, H, S) float32. Of equal scores the earlier token is kept.
    left_padding: for each row the index of its first token; what stands before is padding, which
        is never kept. None: no padding.
    """
    most = max(counts)
    if left_padding is not None:
        scores = _without_padding(scores, to_device(left_padding, scores.device)[:, None])
    index = _indices(_highest(scores, counts), counts)
    return Selection(index, padding_or_none([most - count for count in counts]))


def select_pooled(
    scores: torch.Tensor,
    left_padding: torch.Tensor | None,
    totals: Sequence[int],
    guaranteed: Sequence[int],
) -> PooledSelection:
    """Keep the `totals[b]` highest-scoring tokens of row b, whichever heads they are of.

    Of each head at least the `guaranteed[b]` best stay.

    scores: (B, H, S) float32. Of equal scores the earlier head's, then the earlier token is kept.
    left_padding: (B, H or 1) int64, how many of a head's first tokens are padding.
    """
    if left_padding is not None:
        scores = _without_padding(scores, left_padding)
    if any(guaranteed):
        scores = scores.masked_fill(_highest(scores, guaranteed), torch.inf)
    scores = scores.flatten(1)[:, None]
    return PooledSelection(_indices(_highest(scores, totals), totals)[:, 0], tuple(totals))


def highest_of_heads(
    scores: torch.Tensor, left_padding: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """(B, H, S) bool: the counts[b, h] highest of each head, of equal ones the earlier.

    left_padding: (B, H or 1) int64, how many of a head's first tokens are padding.
    """
    order = _without_padding(scores, left_padding).argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(scores.shape[2], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, ranks) < counts[..., None]


def _without_padding(scores: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """(B, H, S) with the first[b, h] scores below all others; first (B, H or 1)."""
    padding = torch.arange(scores.shape[2], device=scores.device) < first[..., None]
    return scores.masked_fill(padding, -torch.inf)


def _highest(scores: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """(B, H, S) bool, the counts[b] highest of each head.

    Nothing is sorted: what is above the lowest of the highest stays, and of what equals it the
    first.
    """
    most = max(counts)
    wanted = to_device(counts, scores.device)[:, None, None]
    candidates = scores
    if fewer := most - min(counts):
        # What a row keeps less than another is chosen out of what is added, above every score.
        added = torch.arange(fewer, device=scores.device).expand(*scores.shape[:2], -1)
        added = torch.where(added < most - wanted, torch.inf, -torch.inf)
        candidates = torch.cat([scores, added], dim=-1)
    lowest = candidates.topk(most, sorted=False).values.amin(dim=-1, keepdim=True)
    above, equal = scores > lowest, scores == lowest
    missing = wanted - above.sum(dim=-1, keepdim=True)
    return above | equal & (equal.cumsum(dim=-1, dtype=torch.int32) <= missing)


def _indices(kept: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Where (B, H, S) is true, in the last of max(counts), zeros before; counts[b] a head."""
    most = max(counts)
    wanted = to_device(counts, kept.device)[:, None, None]
    # A kept token's place among the others; all else goes to one place too many.
    place = (kept.cumsum(dim=-1) + (most - 1 - wanted)).masked_fill_(~kept, most)
    index = place.new_zeros(*kept.shape[:2], most + 1)
    tokens = torch.arange(kept.shape[-1], device=kept.device)
    return index.scatter_(-1, place, tokens.expand_as(place))[..., :most]
