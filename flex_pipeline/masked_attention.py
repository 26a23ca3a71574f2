"""FlexAttention under a mask, as a backend of the harness, and how many blocks the mask saves."""

from typing import NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask

from flex_pipeline.masks import Mask, Span, causal
from kv_compression.attention import flex
from kv_compression.layout import BLOCK, Layout, block_mask


class _Step(NamedTuple):
    """What all layers of one forward on one device share."""

    layout: Layout
    block_mask: BlockMask | None


class MaskedFlex:
    """An attention backend (`kv_compression.attention.Backend`) that sees what `mask` shows.

    Positions are counted in the stored tokens, so the cache must hold every token: no pruning.
    """

    def __init__(self, mask: Mask):
        self.mask = mask
        self._steps: dict[torch.device, _Step] = {}
        self._prefill: Layout | None = None

    def check(self, device_type: str, dtype: torch.dtype) -> None:
        """Runs everywhere."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: Layout,
        scaling: float,
    ) -> tuple[torch.Tensor, str]:
        """See `Backend`. Raises ValueError when the cache has lost tokens."""
        step = self._steps.get(layout.device)
        if step is None or step.layout != layout:
            step = self._begin(layout, step)
        return flex.attend_under(query, key, value, step.block_mask, scaling)

    def _begin(self, layout: Layout, before: _Step | None) -> _Step:
        past_len = layout.stored_len - layout.query_len
        # The last layer asks for the last token alone of what the other layers have just seen.
        known = (past_len, layout.stored_len)
        if past_len and (before is None or before.layout.stored_len not in known):
            raise ValueError("a mask over positions needs every token's key: no pruning")
        if not past_len:
            self._prefill = layout
        step = _Step(layout, block_mask_of(self.mask, layout))
        self._steps[layout.device] = step
        return step

    def figures(self) -> dict[str, float]:
        """What the last prefill's mask saved, for its row in the results.

        block_sparsity_pct: share of the blocks of dense causal attention that are not computed, in
            percent; below 0 for a mask that computes more of them.
        """
        if self._prefill is None:
            return {}
        return {"block_sparsity_pct": block_sparsity_pct(self.mask, self._prefill)}


def block_sparsity_pct(mask: Mask, layout: Layout) -> float:
    """Share of the blocks of dense causal attention that `mask` does not compute, in percent."""
    computed = blocks(mask, layout)[0].sum().item()
    return 100 * (1 - computed / blocks(causal(), layout)[0].sum().item())


def blocks(mask: Mask, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """Which blocks are touched and which are whole, (B or 1, query blocks, key blocks) bool each.

    From the bounds of the blocks: at 65,536 tokens a tensor of all pairs would take 4 GB.
    """
    starts = torch.tensor(layout.left_padding or (0,), device=layout.device)[:, None, None]
    past_len, end = layout.stored_len - layout.query_len, layout.stored_len - 1
    first_query = torch.arange(past_len, layout.stored_len, BLOCK, device=layout.device)[:, None]
    last_query = (first_query + BLOCK - 1).clamp(max=end)
    first_key = torch.arange(0, layout.stored_len, BLOCK, device=layout.device)
    last_key = (first_key + BLOCK - 1).clamp(max=end)
    queries = Span((first_query - starts).clamp(min=0), last_query - starts)
    keys = Span((first_key - starts).clamp(min=0), last_key - starts)
    touched = mask.touches(queries, keys) & (queries.last >= 0) & (keys.last >= 0)
    # Queries that are padding see themselves alone.
    touched |= (
        (first_query < starts)
        & (first_key <= torch.minimum(last_query, starts - 1))
        & (last_key >= first_query)
    )
    whole = mask.covers(queries, keys) & (first_query >= starts) & (first_key >= starts)
    whole &= (last_query - first_query == BLOCK - 1) & (last_key - first_key == BLOCK - 1)
    return touched, whole


def block_mask_of(mask: Mask, layout: Layout) -> BlockMask | None:
    """`mask` over a layout's rows; None where every query sees every key, as a decode step may."""
    past_len = layout.stored_len - layout.query_len
    queries, keys = Span(past_len, layout.stored_len - 1), Span(0, layout.stored_len - 1)
    if layout.left_padding is None and mask.covers(queries, keys):
        return None
    # Tensors, not numbers: a step later they are other ones, and that must not compile again.
    starts = torch.tensor(layout.left_padding or (0,), device=layout.device)
    offset = torch.tensor(past_len, device=layout.device)
    sees = mask.sees

    def visible(
        batch: torch.Tensor, head: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor
    ) -> torch.Tensor:
        return sees(q_idx + offset, kv_idx)

    def visible_from_start(
        batch: torch.Tensor, head: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor
    ) -> torch.Tensor:
        begin, own = starts[batch], q_idx + offset
        are_tokens = (kv_idx >= begin) & (own >= begin)
        return are_tokens & sees(own - begin, kv_idx - begin) | (kv_idx == own)

    return block_mask(
        *blocks(mask, layout),
        visible if layout.left_padding is None else visible_from_start,
        (layout.query_len, layout.stored_len),
    )
