"""random: tokens drawn by lot, each head for itself. A control: a method should beat it."""

from dataclasses import dataclass, field

import torch

from kv_compression.methods import PrefilledLayer


@dataclass(frozen=True)
class Method:
    """The draw depends on seed, layer, head and a token's place in its row, not on the batch."""

    seed: int = field(
        default=0,
        metadata={"env": "RANDOM_SEED", "help": "seed of the draw"},
    )

    def score(self, layer: PrefilledLayer) -> torch.Tensor:
        """(B, H, S) float32, uniform."""
        heads, stored = layer.keys.shape[1:3]
        # Drawn place by place on the CPU: the same for every length and device.
        generator = torch.Generator().manual_seed(self.seed * 100_003 + layer.layer_idx)
        draw = torch.rand(stored, heads, generator=generator).to(layer.keys.device)
        return draw[layer.positions.clamp(min=0)].transpose(1, 2)
