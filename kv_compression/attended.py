"""What attention had in hand when it read a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from kv_compression.rotary import Rotary
    from kv_compression.storage import KeyValue


@dataclass(frozen=True)
class Attended:
    """Attention's own inputs at a layer's last update, for methods that score by them.

    queries: (B, Hq, Q, D) of the update's tokens.
    scaling: what scores are multiplied by.
    rotary: the layer's rotation; None where no method asks for it.
    key_value: keys and values, where a model makes them of what is stored: they are scored, and of
        all heads that come of a stored one the mean counts. None for those that are stored.
    output_weight: (hidden size, Hq * D), of the projection behind attention; None where no method
        asks for it.
    """

    queries: torch.Tensor | None = None
    scaling: float = 1.0
    rotary: Rotary | None = None
    key_value: KeyValue | None = None
    output_weight: torch.Tensor | None = None


NOTHING = Attended()
"""Of a cache that is compressed outside of a forward."""
