"""leverage: keep the keys that the others say least about (Chari et al. 2025, arXiv 2507.08143)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from kv_compression.methods import StoredLayer

_RIDGE = 1e-2  # added to the squares, so that they can be inverted


@dataclass(frozen=True)
class Method:
    """Approximate leverage scores of the keys before rotation, centred over the text.

    The keys are seen through a random Gaussian map to fewer channels; the draw depends on seed,
    layer and head, not on the batch. This is the half of Compactor that looks at keys alone, as in
    kvpress's LeverageScorePress.
    """

    sketch: int = field(
        default=48,
        metadata={"env": "LEVERAGE_SKETCH", "help": "channels that keys are mapped to"},
    )
    seed: int = field(
        default=0,
        metadata={"env": "LEVERAGE_SEED", "help": "seed of the random map"},
    )

    needs_rotation = True
    query_window = 0

    def __post_init__(self) -> None:
        if self.sketch < 1:
            raise ValueError(f"LEVERAGE_SKETCH must be 1 or more, not {self.sketch}")

    def score(self, layer: StoredLayer) -> torch.Tensor:
        """(B, H, S) float32: x (X^T X + 0.01)^-1 x^T of each row x of the mapped keys X."""
        import torch

        maps = self.maps(layer.layer_idx, *layer.keys.shape[1::2])
        heads = zip(layer.by_head(), maps.to(layer.keys.device), strict=True)
        return torch.cat([_leverage(head, to_sketch) for head, to_sketch in heads], dim=1)

    def maps(self, layer_idx: int, heads: int, head_dim: int) -> torch.Tensor:
        """(H, D, sketch) float32: each head's map."""
        import torch

        # Drawn on the CPU: the same on every device.
        generator = torch.Generator().manual_seed(self.seed * 100_003 + layer_idx)
        drawn = torch.randn(heads, head_dim, self.sketch, generator=generator)
        return drawn / math.sqrt(self.sketch)


def _leverage(layer: StoredLayer, to_sketch: torch.Tensor) -> torch.Tensor:
    """(B, 1, S) float32 for a layer of one key/value head."""
    import torch

    if layer.rotary is None:
        raise ValueError("leverage needs the rotation of the model's layers")
    keys = layer.rotary.undo(layer.keys.float(), layer.positions[:, 0].clamp(min=0))
    is_token = (layer.positions >= 0)[..., None]
    mean = (keys * is_token).sum(dim=2, keepdim=True) / is_token.sum(dim=2, keepdim=True)
    # In float32 a sum of squares may be off by more than the ridge, and have no Cholesky factor.
    mapped = (((keys - mean) * is_token) @ to_sketch).double()
    squares = mapped.transpose(2, 3) @ mapped
    squares.diagonal(dim1=2, dim2=3).add_(_RIDGE)
    factor, _ = torch.linalg.cholesky_ex(squares)
    solved = torch.linalg.solve_triangular(factor, mapped.transpose(2, 3), upper=False)
    return solved.square().sum(dim=2).float()
