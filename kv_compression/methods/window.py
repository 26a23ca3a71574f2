"""window: the first tokens and the most recent ones (StreamingLLM, Xiao et al., arXiv 2309.17453).

A control: it looks at no content.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from kv_compression.methods import StoredLayer

_ABOVE_EVERY_POSITION = 2.0**30


@dataclass(frozen=True)
class Method:
    """Keep `sinks` tokens of the beginning, and the end."""

    sinks: int = field(
        default=4,
        metadata={"env": "WINDOW_SINKS", "help": "first tokens that always stay"},
    )

    query_window = 0

    def __post_init__(self) -> None:
        if self.sinks < 0:
            raise ValueError(f"WINDOW_SINKS must be 0 or more, not {self.sinks}")

    def score(self, layer: StoredLayer) -> torch.Tensor:
        """(B, H, S) float32: the later the better, the first ones best."""
        positions = layer.positions.float()
        scores = positions.masked_fill(positions < self.sinks, _ABOVE_EVERY_POSITION)
        return scores.expand(layer.keys.shape[:3])
