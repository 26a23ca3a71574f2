"""Which keys each query sees: by left padding, query length, stored length, and a window."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # FlexAttention's block size, in tokens


@dataclass(frozen=True)
class Layout:
    """Where each row's tokens are among the stored ones: from left_padding[b] to the end.

    The last Q of them are the queries.

    Query i stands at stored index S - Q + i. It sees the row's tokens up to its own index, with a
    window the last `window` of these, and never the padding before them. A query that is padding
    itself sees itself alone, so that its (unused) output is finite.
    """

    left_padding: tuple[int, ...] | None
    query_len: int
    stored_len: int
    device: torch.device
    window: int | None = None

    @property
    def is_square(self) -> bool:
        """Whether the queries are all the stored tokens, as in a prefill from nothing."""
        return self.query_len == self.stored_len

    @cached_property
    def mask(self) -> torch.Tensor:
        """(B or 1, 1, Q, S) bool, true where a query sees a key."""
        stored = torch.arange(self.stored_len, device=self.device)
        own = stored[self.stored_len - self.query_len :, None]
        causal = stored <= own
        if self.window is not None:
            causal &= stored > own - self.window
        if self.left_padding is None:
            return causal[None, None]
        first = torch.tensor(self.left_padding, device=self.device)[:, None, None, None]
        return causal & (stored >= first) | (stored == own)

    def drop_mask(self) -> None:
        """Free `mask`, which is made anew when it is read again."""
        self.__dict__.pop("mask", None)

    @cached_property
    def block_mask(self) -> BlockMask:
        """The same as a FlexAttention block mask, built from block bounds: no Q x S tensor."""
        left_padding = torch.tensor(self.left_padding or (0,), device=self.device)
        # Tensors, not numbers: of another request they are others, and that compiles nothing anew.
        offset = torch.tensor(self.stored_len - self.query_len, device=self.device)
        reach = torch.tensor(self.window or self.stored_len, device=self.device)

        def causal(
            batch: torch.Tensor, head: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor
        ) -> torch.Tensor:
            return kv_idx <= q_idx + offset

        def in_window(
            batch: torch.Tensor, head: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor
        ) -> torch.Tensor:
            own = q_idx + offset
            return (kv_idx <= own) & (kv_idx > own - reach)

        def from_start(
            batch: torch.Tensor, head: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor
        ) -> torch.Tensor:
            own = q_idx + offset
            seen = (kv_idx <= own) & (kv_idx > own - reach) & (kv_idx >= left_padding[batch])
            return seen | (kv_idx == own)

        first_query = torch.arange(0, self.query_len, BLOCK, device=self.device)[:, None] + offset
        last_query = (first_query + BLOCK - 1).clamp(max=self.stored_len - 1)
        first_key = torch.arange(0, self.stored_len, BLOCK, device=self.device)
        last_key = first_key + BLOCK - 1
        begins = left_padding[:, None, None]
        touched = (first_key <= last_query) & (last_key >= begins)
        touched = touched & (last_key > first_query - reach)
        touched |= (first_key <= last_query) & (last_key >= first_query)
        # A block that reaches beyond the last key, or holds queries beyond the last one, needs the
        # mask function.
        whole = (last_key <= first_query) & (first_key >= begins)
        whole &= first_key > last_query - reach
        whole &= (first_query + BLOCK <= self.stored_len) & (last_key < self.stored_len)
        without_padding = causal if self.window is None else in_window
        mask = without_padding if self.left_padding is None else from_start
        return block_mask(touched, whole, mask, (self.query_len, self.stored_len))


def block_mask(
    touched: torch.Tensor,
    whole: torch.Tensor,
    mask_mod: Callable[..., torch.Tensor],
    lengths: tuple[int, int],
) -> BlockMask:
    """A FlexAttention block mask for `lengths` of queries and keys.

    touched, whole: (B, query blocks, key blocks) bool; a block is computed when it is touched, and
        without `mask_mod` when it is whole: every pair in it visible, none beyond the lengths.
    """
    return BlockMask.from_kv_blocks(
        *_ordered(touched & ~whole),
        *_ordered(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=lengths,
    )


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, query blocks, key blocks) bool -> counts and key-block indices, chosen ones first."""
    counts = blocks.sum(dim=-1, dtype=torch.int32)
    indices = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return counts[:, None].contiguous(), indices.to(torch.int32)[:, None].contiguous()
