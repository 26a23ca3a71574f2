"""Where a layer's keys and values lie: buffers with room for new tokens, the prompt quantized."""

from collections.abc import Sequence

import torch

from kv_compression.quantized import QuantizedPrefix

KeyValue = tuple[torch.Tensor, torch.Tensor]


class Storage:
    """Keys and values, (B, H, S, D) each, in buffers that `capacity` tokens fit into.

    keys, values: tensors of the same B, H, D, dtype and device; none of their tokens is stored yet.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, capacity: int):
        self.stored_tokens = 0
        self._keys, self._values = (buffer_like(tensor, capacity) for tensor in (keys, values))

    @classmethod
    def of(
        cls, keys: torch.Tensor, values: torch.Tensor, index: torch.Tensor | None, room: int
    ) -> "Storage":
        """A copy of the tokens at `index`, int64 (B, H, S_kept), or of all, and `room` for more."""
        kept = keys.shape[2] if index is None else index.shape[2]
        storage = cls(keys, values, kept + room)
        storage.stored_tokens = kept
        for source, target in zip((keys, values), storage.read(), strict=True):
            if index is None:
                target.copy_(source)
            else:
                torch.gather(source, 2, _by_channel(index, source), out=target)
        return storage

    def append(
        self, keys: torch.Tensor, values: torch.Tensor, padding: Sequence[int] | None
    ) -> None:
        """Add tokens, (B, H, Q, D) each; in row b the first padding[b] of them are padding.

        The row's earlier tokens move up to its new ones; what was between goes in front.
        """
        before, new_tokens = self.stored_tokens, keys.shape[2]
        if self._keys.shape[2] < before + new_tokens:
            grown = Storage.of(*Storage.read(self), None, room=new_tokens)
            self._keys, self._values = grown._keys, grown._values
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
    """The same with the tokens at `index`, or all, in `bits` bits; `room` later ones are floats.

    Raises ValueError for 4 bits and an odd D.
    """

    def __init__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        index: torch.Tensor | None,
        room: int,
        left_padding: tuple[int, ...] | None,
        bits: int,
    ):
        super().__init__(keys, values, room)
        if index is not None:
            keys, values = (
                tensor.gather(2, _by_channel(index, tensor)) for tensor in (keys, values)
            )
        self._prefix = QuantizedPrefix(keys, values, left_padding, bits)
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


def buffer_like(like: torch.Tensor, tokens: int) -> torch.Tensor:
    """Uninitialized, (B, H, tokens, D), for a tensor (B, H, S, D)."""
    batch, heads, _, head_dim = like.shape
    return like.new_empty(batch, heads, tokens, head_dim)


def _by_channel(index: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """(B, H, S_kept) for `gather` along the tokens of (B, H, S, D)."""
    return index[..., None].expand(-1, -1, -1, tensor.shape[-1])


def close_gaps(
    keys: torch.Tensor, values: torch.Tensor, before: int, padding: Sequence[int]
) -> None:
    """Move each row's first `before` tokens up over the padding[b] ones behind them, in place."""
    for row, gap in enumerate(padding):
        for tensor in (keys, values):
            part = tensor[row, :, : before + gap]
            part.copy_(part.roll(gap, dims=1))
