"""random: tokens drawn by lot, each head for itself. A control: a method should beat it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from kv_compression.methods import StoredLayer


@dataclass(frozen=True)
class Method:
    """The draw depends on seed, layer, head and a token's place in its row, not on the batch."""

    seed: int = field(
        default=0,
        metadata={"env": "RANDOM_SEED", "help": "seed of the draw"},
    )

    query_window = 0

    def score(self, layer: StoredLayer) -> torch.Tensor:
        """(B, H, S) float32, uniform."""
        import torch

        batch, heads, stored = layer.keys.shape[:3]
        places = layer.positions.clamp(min=0).expand(batch, heads, stored)
        # Drawn place by place on the CPU: the same for every length and device.
        generator = torch.Generator().manual_seed(self.seed * 100_003 + layer.layer_idx)
        draw = torch.rand(int(places.max()) + 1, heads, generator=generator).to(places.device)
        return draw.T.expand(batch, -1, -1).gather(2, places)
