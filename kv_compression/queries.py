"""The last queries of a layer, kept for methods that score by them."""

from collections.abc import Sequence

import torch

from kv_compression.selection import to_device
from kv_compression.storage import buffer_like


class LastQueries:
    """Queries and their positions; nothing at first.

    states: (B, Hq, Q, D) or None.
    positions: (B, Q) int64, negative for padding, or None.
    """

    def __init__(self) -> None:
        self.states: torch.Tensor | None = None
        self.positions: torch.Tensor | None = None

    def note_prompt(
        self, queries: torch.Tensor, window: int, coming: int, lengths: Sequence[int]
    ) -> None:
        """Note a prompt's last `window` queries, given those of a chunk.

        coming: tokens of the prompt after this chunk. lengths: of each row, up to its end.
        """
        stop = window - coming
        if self.states is None and coming == 0:
            self.states = queries[:, :, -window:]
        else:
            if self.states is None:
                self.states = buffer_like(queries, window)
            if stop > 0:
                wanted = queries[:, :, -stop:]
                self.states[:, :, stop - wanted.shape[2] : stop] = wanted
        if coming == 0:
            self.positions = _positions(lengths, self.states)

    def add(
        self, queries: torch.Tensor, window: int, padding: Sequence[int], lengths: Sequence[int]
    ) -> None:
        """Note later queries, the first padding[b] of them none; only the last `window` stay."""
        before = to_device(padding, queries.device)[:, None]
        place = torch.arange(queries.shape[2], device=queries.device)
        positions = _positions(lengths, queries).masked_fill(place < before, -1)
        if self.states is not None and self.positions is not None:
            queries = torch.cat([self.states, queries], dim=2)
            positions = torch.cat([self.positions, positions], dim=1)
        self.states, self.positions = queries, positions
        self.keep(window)

    def keep(self, count: int) -> None:
        """Forget all but the last `count`."""
        if count == 0:
            self.states = self.positions = None
        if self.states is not None and self.positions is not None:
            self.states = self.states[:, :, -count:].clone()
            self.positions = self.positions[:, -count:]

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keep the rows `rows`, int64 (B_new,)."""
        if self.states is not None and self.positions is not None:
            self.states, self.positions = self.states[rows], self.positions[rows]


def _positions(lengths: Sequence[int], queries: torch.Tensor) -> torch.Tensor:
    """(B, Q) int64, of the last tokens of rows of `lengths`; a prompt's padding is below 0."""
    newest = to_device(lengths, queries.device)[:, None]
    return newest - queries.shape[2] + torch.arange(queries.shape[2], device=queries.device)
