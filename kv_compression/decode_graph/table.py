"""What a captured step must know of a cache, on the device, where it may change."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from kv_compression.layer import PrunedLayer
from kv_compression.ragged import RaggedStorage

COLUMNS = 5
"""Address of the first key and value, first token that is seen, stored tokens, window."""

NO_WINDOW = 2**31 - 1


@dataclass(frozen=True)
class LayerTable:
    """Where each layer's keys and values lie, for batches of one size, and who reads them.

    A pair is a row and one of its key/value heads, row * (most heads of a layer) + head.

    places: (layers, pairs, COLUMNS) int64.
    splits: (layers, pairs + 1) int32: the programs that work for a pair begin at its number.
    owners: (layers, programs) int32: the pair that a program works for.
    added: (1,) int32, tokens that were added since `read`; the next one goes behind them.
    per_processor: programs for each of the GPU's multiprocessors.
    """

    places: torch.Tensor
    splits: torch.Tensor
    owners: torch.Tensor
    added: torch.Tensor
    per_processor: int = 1

    @classmethod
    def of(cls, layers: Sequence[PrunedLayer], per_processor: int = 1) -> "LayerTable":
        """A table of these layers, and of other caches of as many rows and heads by `read`."""
        batch, heads = layers[0].keys.shape[0], [layer.keys.shape[1] for layer in layers]
        device, pairs = layers[0].keys.device, batch * max(heads)
        count = max(programs(device, batch * of_layer, per_processor) for of_layer in heads)
        table = cls(
            torch.zeros(len(layers), pairs, COLUMNS, dtype=torch.int64, device=device),
            torch.zeros(len(layers), pairs + 1, dtype=torch.int32, device=device),
            torch.zeros(len(layers), count, dtype=torch.int32, device=device),
            torch.zeros(1, dtype=torch.int32, device=device),
            per_processor,
        )
        table.read(layers)
        return table

    def read(self, layers: Sequence[PrunedLayer]) -> None:
        """Take over the layers' storage, which must stay where it is while steps are replayed."""
        batch, heads = layers[0].keys.shape[0], [layer.keys.shape[1] for layer in layers]
        places = _places(layers, batch, max(heads))
        first, stored, window = places.unbind(-1)[2:]
        used = torch.arange(max(heads)) < torch.tensor(heads)[:, None, None]
        # The newest token is one more to read.
        work = ((stored - first).minimum(window) + 1) * used
        device = self.places.device
        count = torch.tensor([programs(device, batch * n, self.per_processor) for n in heads])
        ends = _shared_out(work.flatten(1), used.expand_as(work).flatten(1).long(), count)
        every = torch.arange(self.owners.shape[1]).expand(len(layers), -1)
        owners = torch.searchsorted(ends, every.contiguous(), right=True)
        self.places.copy_(places.flatten(1, 2))
        self.splits[:, 1:].copy_(ends)
        self.owners.copy_(owners)
        self.added.zero_()


def is_ragged(layers: Sequence[PrunedLayer]) -> bool:
    """Whether heads of one of the layers store different numbers of tokens."""
    return any(layer.ragged is not None for layer in layers)


def programs(device: torch.device, pairs: int, per_processor: int) -> int:
    """How many share the work of a layer: as many for each pair where all are equally long."""
    return max(1, per_processor * processors(device) // pairs) * pairs


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


def _places(layers: Sequence[PrunedLayer], batch: int, heads: int) -> torch.Tensor:
    """(layers, B, most heads, COLUMNS) int64, on the host."""
    known, first, ragged = [], [], {}
    for number, layer in enumerate(layers):
        window = layer.kind.window or NO_WINDOW
        if isinstance(layer.ragged, RaggedStorage):
            ragged[number] = torch.tensor(layer.ragged.places())
            known.append([0, 0, 0, 0, 0, window])
            first.append((0,) * batch)
            continue
        assert layer.storage is not None
        keys, values = layer.storage.read()
        assert keys.shape == values.shape
        assert keys.stride() == values.stride()
        assert keys.stride()[2:] == (keys.shape[3], 1)
        steps = [stride * keys.element_size() for stride in keys.stride()[:2]]
        known.append([keys.data_ptr(), values.data_ptr(), *steps, keys.shape[2], window])
        first.append(layer.left_padding or (0,) * batch)
    row, head = torch.arange(batch)[:, None], torch.arange(heads)
    parts = torch.tensor(known)[..., None, None].unbind(1)
    offset = parts[2] * row + parts[3] * head
    columns = [parts[0] + offset, parts[1] + offset, torch.tensor(first)[..., None], *parts[4:]]
    places = torch.stack(torch.broadcast_tensors(*columns), dim=-1)
    for number, of_layer in ragged.items():
        places[number, :, : of_layer.shape[1], :4] = of_layer
    return places
