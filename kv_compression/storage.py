"""Where a layer's keys and values lie: buffers with room for new tokens, the prompt quantized."""

from collections.abc import Sequence

import torch

from kv_compression.quantized import QuantizedPrefix

KeyValue = tuple[torch.Tensor, torch.Tensor]


class Storage:
    """Keys and values, (B, H, S, D) each, copied here, and room for `room` more tokens."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, room: int):
        self.stored_tokens = keys.shape[2]
        self._keys, self._values = (_with_room(tensor, room) for tensor in (keys, values))

    def append(
        self, keys: torch.Tensor, values: torch.Tensor, padding: Sequence[int] | None
    ) -> None:
        """Add tokens, (B, H, Q, D) each, of which the first padding[b] are none in row b.

        The row's earlier tokens move up to its new ones; what was between goes in front.
        """
        before, new_tokens = self.stored_tokens, keys.shape[2]
        if self._keys.shape[2] < before + new_tokens:
            old_keys, old_values = self._keys[:, :, :before], self._values[:, :, :before]
            self._keys, self._values = (
                _with_room(tensor, room=new_tokens) for tensor in (old_keys, old_values)
            )
        self.stored_tokens += new_tokens
        self._keys[:, :, before : self.stored_tokens] = keys
        self._values[:, :, before : self.stored_tokens] = values
        if padding is not None:
            close_gaps(self._keys, self._values, before, padding)

    def read(self) -> KeyValue:
        """All keys and values, (B, H, S, D) each: views of the buffers."""
        return self._keys[:, :, : self.stored_tokens], self._values[:, :, : self.stored_tokens]

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keep the rows `rows`, int64 (B_new,)."""
        self._keys, self._values = self._keys[rows], self._values[rows]

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens that are stored; room for others is not counted."""
        return sum(tensor.nbytes for tensor in self.read())


class QuantizedStorage(Storage):
    """The same with the tokens given at first in `bits` bits; those that come later are floats.

    Raises ValueError for 4 bits and an odd D.
    """

    def __init__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        room: int,
        starts: tuple[int, ...] | None,
        bits: int,
    ):
        super().__init__(keys[:, :, :0], values[:, :, :0], room)
        self._prefix = QuantizedPrefix(keys, values, starts, bits)
        self.stored_tokens = self._prefix.stored_tokens
        self._gaps: tuple[int, Sequence[int]] | None = None

    def append(
        self, keys: torch.Tensor, values: torch.Tensor, padding: Sequence[int] | None
    ) -> None:
        """See Storage. What is quantized cannot move, so gaps are closed when it is read."""
        if padding is not None:
            assert self._gaps is None, "one padded chunk is all that a quantized prompt takes"
            self._gaps = self.stored_tokens, padding
        self.stored_tokens -= self._prefix.stored_tokens
        super().append(keys, values, padding=None)
        self.stored_tokens += self._prefix.stored_tokens

    def read(self) -> KeyValue:
        """All keys and values as floats, (B, H, S, D) each, made for the caller."""
        new_tokens = self.stored_tokens - self._prefix.stored_tokens
        keys, values = self._prefix.read()
        keys = torch.cat([keys, self._keys[:, :, :new_tokens]], dim=2)
        values = torch.cat([values, self._values[:, :, :new_tokens]], dim=2)
        if self._gaps is not None:
            close_gaps(keys, values, *self._gaps)
        return keys, values

    def select_rows(self, rows: torch.Tensor) -> None:
        """Refused: a quantized prompt stays as it is."""
        raise NotImplementedError("the rows of a quantized cache cannot be selected")

    @property
    def nbytes(self) -> int:
        """Bytes of the quantized prompt and of the new tokens."""
        new_tokens = self.stored_tokens - self._prefix.stored_tokens
        new = (tensor[:, :, :new_tokens].nbytes for tensor in (self._keys, self._values))
        return self._prefix.nbytes + sum(new)


def _with_room(tensor: torch.Tensor, room: int) -> torch.Tensor:
    """A copy of (B, H, S, D) with room for more tokens; a view of a larger tensor is let go."""
    batch, heads, stored, head_dim = tensor.shape
    buffer = tensor.new_empty(batch, heads, stored + room, head_dim)
    buffer[:, :, :stored] = tensor
    return buffer


def close_gaps(
    keys: torch.Tensor, values: torch.Tensor, before: int, padding: Sequence[int]
) -> None:
    """Move each row's first `before` tokens up over the padding[b] ones behind them, in place."""
    for row, gap in enumerate(padding):
        for tensor in (keys, values):
            part = tensor[row, :, : before + gap]
            part.copy_(part.roll(gap, dims=1))
