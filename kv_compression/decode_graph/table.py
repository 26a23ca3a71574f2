"""What a captured step must know of a cache, on the device, where it may change."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kv_compression.layer import PrunedLayer

COLUMNS = 6
"""Address of keys and of values, elements between rows and between heads, stored tokens, window."""

NO_WINDOW = 2**31 - 1


@dataclass(frozen=True)
class LayerTable:
    """Where each layer's keys and values lie, for batches of one size.

    addresses: (layers, COLUMNS) int64.
    starts: (layers, B) int32, the first stored token of each row; before it stands padding.
    added: (1,) int32, tokens that were added since `read`; the next one goes behind them.
    """

    addresses: torch.Tensor
    starts: torch.Tensor
    added: torch.Tensor

    @classmethod
    def empty(cls, layers: int, batch: int, device: torch.device) -> "LayerTable":
        """A table to be filled by `read`."""
        return cls(
            torch.zeros(layers, COLUMNS, dtype=torch.int64, device=device),
            torch.zeros(layers, batch, dtype=torch.int32, device=device),
            torch.zeros(1, dtype=torch.int32, device=device),
        )

    def read(self, layers: Sequence[PrunedLayer]) -> None:
        """Take over the layers' storage, which must stay where it is while steps are replayed."""
        batch = self.starts.shape[1]
        addresses = []
        for layer in layers:
            assert layer.storage is not None
            keys, values = layer.storage.read()
            assert keys.shape == values.shape
            assert keys.stride() == values.stride()
            assert keys.stride()[2:] == (keys.shape[3], 1)
            of_storage = [keys.data_ptr(), values.data_ptr(), *keys.stride()[:2], keys.shape[2]]
            addresses.append([*of_storage, layer.kind.window or NO_WINDOW])
        self.addresses.copy_(torch.tensor(addresses))
        self.starts.copy_(torch.tensor([layer.left_padding or (0,) * batch for layer in layers]))
        self.added.zero_()
