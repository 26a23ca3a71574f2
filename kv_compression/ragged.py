"""Keys and values of which every head of every row has a number of tokens of its own."""

from collections.abc import Sequence
from functools import cached_property

import torch

from kv_compression.selection import PooledSelection, to_device
from kv_compression.storage import KeyValue, QuantizedStorage


class RaggedStorage:
    """Heads' tokens one behind the other in one buffer, each head's with room behind them.

    keys, values: (B, H, S, D) each, which the tokens are taken from. Padding is never stored.
    kept: which of them.
    room: tokens that can be added to each head without a copy.
    positions: (B, H or 1, S) int64, each token's place in its row, where they are asked for later;
        else None.

    Nothing waits for the device until `counts` are asked for.
    """

    def __init__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        kept: PooledSelection,
        room: int,
        positions: torch.Tensor | None = None,
    ):
        batch, heads, stored, _ = keys.shape
        self._heads, self._totals, self._room = heads, kept.totals, room
        self._added, self._hidden = [0] * batch, [[0] * heads for _ in range(batch)]
        head, token = kept.index // stored, kept.index % stored
        wide = kept.index.shape[1]
        place = torch.arange(wide, device=keys.device)
        place = place - (wide - to_device(kept.totals, keys.device))[:, None]
        self._kept_counts = kept.counts(heads, stored)
        begins = [0]
        for total in kept.totals:
            begins.append(begins[-1] + total + heads * room)
        self._capacity = begins.pop()
        row_begin = to_device(begins, keys.device)[:, None]
        behind = row_begin + torch.arange(heads, device=keys.device) * room
        self._next = behind + self._kept_counts.cumsum(dim=1)  # (B, H): where new tokens go
        # The last slot takes what is stored nowhere: padding, and what fills `index` up.
        slots = torch.where(place >= 0, row_begin + place + head * room, self._capacity).flatten()
        row = torch.arange(batch, device=keys.device)[:, None]
        self._keys, self._values = (
            tensor.new_empty(self._capacity + 1, tensor.shape[3]) for tensor in (keys, values)
        )
        self._keys[slots] = keys[row, head, token].flatten(0, 1)
        self._values[slots] = values[row, head, token].flatten(0, 1)
        self._positions = None
        if positions is not None:
            positions = positions.expand(-1, heads, -1)
            self._positions = positions.new_full((self._capacity + 1,), -1)
            self._positions[slots] = positions[row, head, token].flatten()

    def append(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        padding: Sequence[int] | None,
        positions: torch.Tensor | None = None,
    ) -> None:
        """Add tokens, (B, H, Q, D) each; in row b the first padding[b] of them are padding.

        positions: (B, Q) int64, of storage that was made with positions.
        """
        batch, _, new_tokens, _ = keys.shape
        padding = padding or (0,) * batch
        self._added = [
            added + new_tokens - none for added, none in zip(self._added, padding, strict=True)
        ]
        if max(self._added) > self._room:
            self._make_room(max(self._added))
        place = torch.arange(new_tokens, device=keys.device)
        place = place - to_device(padding, keys.device)[:, None]  # (B, Q)
        slots = self._next[..., None] + place[:, None]
        slots = slots.masked_fill((place < 0)[:, None], self._capacity)
        self._keys[slots] = keys
        self._values[slots] = values
        if self._positions is not None:
            assert positions is not None
            self._positions[slots] = positions[:, None].expand_as(slots)
        self._next = self._next + (place[:, -1:] + 1)

    def _make_room(self, room: int) -> None:
        """Move every head's tokens apart, so that `room` can be added to each."""
        more = room - self._room
        pairs = len(self._added) * self._heads
        lines = torch.arange(pairs, device=self._keys.device)
        ends = self._next.flatten() + lines * more
        old = torch.arange(self._capacity, device=self._keys.device)
        # The pair whose slots these are: the last one that begins no later.
        begins = torch.tensor(self._begins, device=self._keys.device).flatten()
        new = old + (torch.searchsorted(begins, old, right=True) - 1) * more
        self._capacity += pairs * more
        for name in ("_keys", "_values", "_positions"):
            if (before := getattr(self, name)) is not None:
                after = before.new_empty(self._capacity + 1, *before.shape[1:])
                after[new] = before[:-1]
                setattr(self, name, after)
        self._next, self._room = ends.view_as(self._next), room
        self.__dict__.pop("_begins")

    @cached_property
    def _counts(self) -> list[list[int]]:
        counts: list[list[int]] = self._kept_counts.tolist()
        return counts

    @cached_property
    def _begins(self) -> list[list[int]]:
        """The slot of each head's first token."""
        begins: list[list[int]] = []
        slot = 0
        for counts in self._counts:
            begins.append([])
            for count in counts:
                begins[-1].append(slot)
                slot += count + self._room
        return begins

    def counts(self) -> list[list[int]]:
        """Tokens stored of each row and head."""
        return [
            [count + added for count in counts]
            for counts, added in zip(self._counts, self._added, strict=True)
        ]

    @property
    def row_counts(self) -> list[int]:
        """Tokens stored of each row, all heads together."""
        return [
            total + added * self._heads
            for total, added in zip(self._totals, self._added, strict=True)
        ]

    def read(self, row: int, head: int) -> KeyValue:
        """The keys and values of one head, (1, 1, S, D) each: views of the buffers."""
        slots = self._slots(row, head)
        return self._keys[None, None, slots], self._values[None, None, slots]

    def _slots(self, row: int, head: int) -> slice:
        begin = self._begins[row][head]
        end = begin + self._counts[row][head] + self._added[row]
        return slice(begin + self._hidden[row][head], end)

    def padded(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keys, values (B, H, S, D) and positions (B, H, S), S that of the longest head.

        A shorter head's tokens stand at the end; before them stand zeros with positions of -1.
        """
        assert self._positions is not None
        longest = max(map(max, self.counts()))
        batch = len(self._added)
        slots = self._next[..., None] - longest + torch.arange(longest, device=self._keys.device)
        begins = torch.tensor(self._begins, device=self._keys.device)[..., None]
        slots = slots.where(slots >= begins, self._capacity)
        self._keys[-1], self._values[-1], self._positions[-1] = 0, 0, -1
        assert slots.shape == (batch, self._heads, longest)
        return self._keys[slots], self._values[slots], self._positions[slots]

    def places(self) -> list[list[list[int]]]:
        """Of each row and head: addresses of its first key and value, tokens hidden, and stored."""
        places = []
        for begins, counts, hidden in zip(self._begins, self.counts(), self._hidden, strict=True):
            places.append(
                [
                    [self._keys[begin].data_ptr(), self._values[begin].data_ptr(), first, count]
                    for begin, first, count in zip(begins, hidden, counts, strict=True)
                ]
            )
        return places

    def hide(self, row: int) -> None:
        """Let nothing that is stored of this row be read any more."""
        self._hidden[row] = self.counts()[row]

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens that are stored; room for others is not counted."""
        channels = self._keys.shape[1] + self._values.shape[1]
        return sum(self.row_counts) * channels * self._keys.element_size()


class QuantizedRaggedStorage:
    """The same with the tokens that are kept in `bits` bits, head by head; later ones are floats.

    Raises ValueError for 4 bits and an odd D.
    """

    def __init__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        kept: PooledSelection,
        room: int,
        bits: int,
    ):
        batch, heads, stored, _ = keys.shape
        self._hidden = [[0] * heads for _ in range(batch)]
        self._pairs: list[list[QuantizedStorage]] = []
        for row, (filled, total) in enumerate(zip(kept.index, kept.totals, strict=True)):
            index = filled[len(filled) - total :]
            per_head = torch.bincount(index // stored, minlength=heads).tolist()
            self._pairs.append(
                [
                    QuantizedStorage(
                        keys[row, None, head, None],
                        values[row, None, head, None],
                        tokens[None, None],
                        room,
                        None,
                        bits,
                    )
                    for head, tokens in enumerate((index % stored).split(per_head))
                ]
            )

    def append(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        padding: Sequence[int] | None,
        positions: torch.Tensor | None = None,
    ) -> None:
        """See RaggedStorage."""
        for row, heads in enumerate(self._pairs):
            new = slice(padding[row] if padding else 0, None)
            for head, storage in enumerate(heads):
                storage.append(
                    keys[row, None, head, None, new], values[row, None, head, None, new], None
                )

    @property
    def row_counts(self) -> list[int]:
        """Tokens stored of each row, all heads together."""
        return [sum(storage.stored_tokens for storage in heads) for heads in self._pairs]

    def read(self, row: int, head: int) -> KeyValue:
        """The keys and values of one head as floats, (1, 1, S, D) each."""
        keys, values = self._pairs[row][head].read()
        hidden = self._hidden[row][head]
        return keys[:, :, hidden:], values[:, :, hidden:]

    def hide(self, row: int) -> None:
        """Let nothing that is stored of this row be read any more."""
        self._hidden[row] = [storage.stored_tokens for storage in self._pairs[row]]

    @property
    def nbytes(self) -> int:
        """Bytes of the quantized tokens and of the new ones."""
        return sum(storage.nbytes for heads in self._pairs for storage in heads)
