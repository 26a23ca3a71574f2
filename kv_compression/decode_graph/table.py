"""What a captured step must know of a cache, on the device, where it may change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from kv_compression.layer import PrunedLayer
from kv_compression.ragged import RaggedStorage

COLUMNS = 6
"""Address of keys and of values, elements between rows and between heads, stored tokens, window."""

PLACE_COLUMNS = 5
"""Address of the first key and value, first token that is seen, stored tokens, window."""

NO_WINDOW = 2**31 - 1

_PER_PROCESSOR = 3  # programs for a GPU's multiprocessor, where heads differ


@dataclass(frozen=True)
class LayerTable:
    """Where each layer's keys and values lie, for batches of one size.

    addresses: (layers, COLUMNS) int64.
    starts: (layers, B) int32, the first stored token of each row; before it stands padding.
    added: (1,) int32, tokens that were added since `read`; the next one goes behind them.
    pairs: where heads store different numbers of tokens, what says so; the first two then say
        nothing.
    """

    addresses: torch.Tensor
    starts: torch.Tensor
    added: torch.Tensor
    pairs: PairTable | None = None

    @classmethod
    def of(cls, layers: Sequence[PrunedLayer]) -> LayerTable:
        """A table of these layers, and of other caches of their kind by `read`."""
        batch, device = layers[0].keys.shape[0], layers[0].keys.device
        table = cls(
            torch.zeros(len(layers), COLUMNS, dtype=torch.int64, device=device),
            torch.zeros(len(layers), batch, dtype=torch.int32, device=device),
            torch.zeros(1, dtype=torch.int32, device=device),
            PairTable.empty(layers) if is_ragged(layers) else None,
        )
        table.read(layers)
        return table

    def read(self, layers: Sequence[PrunedLayer]) -> None:
        """Take over the layers' storage, which must stay where it is while steps are replayed."""
        self.added.zero_()
        if self.pairs is not None:
            self.pairs.read(layers)
            return
        self.addresses.copy_(torch.tensor([_address(layer) for layer in layers]))
        self.starts.copy_(torch.tensor([_padding(layer) for layer in layers]))


@dataclass(frozen=True)
class PairTable:
    """Where the tokens of each pair lie, and who reads them.

    A pair is a row and one of its key/value heads, row * (most heads of a layer) + head.

    places: (layers, pairs, PLACE_COLUMNS) int64.
    splits: (layers, pairs + 1) int32: the programs that work for a pair begin at its number.
    owners: (layers, programs) int32: the pair that a program works for.
    """

    places: torch.Tensor
    splits: torch.Tensor
    owners: torch.Tensor

    @classmethod
    def empty(cls, layers: Sequence[PrunedLayer]) -> PairTable:
        """A table to be filled by `read`."""
        batch, heads = layers[0].keys.shape[0], [layer.keys.shape[1] for layer in layers]
        device, pairs = layers[0].keys.device, batch * max(heads)
        count = max(programs(device, batch * of_layer) for of_layer in heads)
        return cls(
            torch.zeros(len(layers), pairs, PLACE_COLUMNS, dtype=torch.int64, device=device),
            torch.zeros(len(layers), pairs + 1, dtype=torch.int32, device=device),
            torch.zeros(len(layers), count, dtype=torch.int32, device=device),
        )

    def read(self, layers: Sequence[PrunedLayer]) -> None:
        """Take over the layers' storage; the longer a pair, the more programs it gets."""
        batch, heads = layers[0].keys.shape[0], [layer.keys.shape[1] for layer in layers]
        places = torch.stack([_places(layer, batch, max(heads)) for layer in layers])
        first, stored, window = places.unbind(-1)[2:]
        used = torch.arange(max(heads)) < torch.tensor(heads)[:, None, None]
        # The newest token is one more to read.
        work = ((stored - first).minimum(window) + 1) * used
        count = torch.tensor([programs(self.places.device, batch * n) for n in heads])
        ends = _shared_out(work.flatten(1), used.expand_as(work).flatten(1).long(), count)
        every = torch.arange(self.owners.shape[1]).repeat(len(layers), 1)
        self.places.copy_(places.flatten(1, 2))
        self.splits[:, 1:].copy_(ends)
        self.owners.copy_(torch.searchsorted(ends, every, right=True))


def is_ragged(layers: Sequence[PrunedLayer]) -> bool:
    """Whether heads of one of the layers store different numbers of tokens."""
    return any(layer.ragged is not None for layer in layers)


def programs(device: torch.device, pairs: int) -> int:
    """How many programs read the pairs of a layer whose heads differ; one for each at least."""
    return max(1, _PER_PROCESSOR * processors(device) // pairs) * pairs


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _shared_out(work: torch.Tensor, used: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """(layers, pairs) int64: where each pair's programs end, count[layer] of them in all.

    Each of the `used` has one, the others go by the `work`; (layers, pairs) each.
    """
    done, total = work.cumsum(dim=1), work.sum(dim=1, keepdim=True)
    others = count[:, None] - used.sum(dim=1, keepdim=True)
    return used.cumsum(dim=1) + others * done // total


def _padding(layer: PrunedLayer) -> tuple[int, ...]:
    return layer.left_padding or (0,) * layer.keys.shape[0]


def _address(layer: PrunedLayer) -> list[int]:
    """The COLUMNS of a layer whose heads store as many tokens."""
    assert layer.storage is not None
    keys, values = layer.storage.read()
    assert keys.shape == values.shape
    assert keys.stride() == values.stride()
    assert keys.stride()[2:] == (keys.shape[3], 1)
    of_storage = [keys.data_ptr(), values.data_ptr(), *keys.stride()[:2], keys.shape[2]]
    return [*of_storage, layer.kind.window or NO_WINDOW]


def _places(layer: PrunedLayer, batch: int, heads: int) -> torch.Tensor:
    """(B, heads, PLACE_COLUMNS) int64, on the host; zeros for heads that the layer has not."""
    places = torch.zeros(batch, heads, PLACE_COLUMNS, dtype=torch.int64)
    places[..., 4] = layer.kind.window or NO_WINDOW
    own = places[:, : layer.keys.shape[1]]
    if isinstance(layer.ragged, RaggedStorage):
        own[..., :4] = torch.tensor(layer.ragged.places())
        return places
    keys, values, row_stride, head_stride, stored, _ = _address(layer)
    row, head = torch.arange(batch)[:, None], torch.arange(own.shape[1])
    offset = (row_stride * row + head_stride * head) * layer.keys.element_size()
    own[..., 0], own[..., 1] = keys + offset, values + offset
    own[..., 2], own[..., 3] = torch.tensor(_padding(layer))[:, None], stored
    return places
