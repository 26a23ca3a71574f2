"""lagkv: keep what stands out from the part of the text that follows (arXiv 2504.04704)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from kv_compression.methods import StoredLayer

_ABOVE_EVERY_PLACE = 2.0**30


@dataclass(frozen=True)
class Method:
    """Each part of `lag` tokens is ranked by how unevenly the next part's ranges scale it.

    A key's or value's channels are scaled by the least and the largest of the next part; the more
    the scaled channels deviate from each other, the better. Ranks count within a part, so that
    every part keeps the same share. The first tokens and those that no whole part follows stay.
    """

    sinks: int = field(
        default=4,
        metadata={"env": "LAGKV_SINKS", "help": "first tokens that always stay"},
    )
    lag: int = field(
        default=128,
        metadata={"env": "LAGKV_LAG", "help": "tokens of a part"},
    )

    query_window = 0

    def __post_init__(self) -> None:
        if self.sinks < 0:
            raise ValueError(f"LAGKV_SINKS must be 0 or more, not {self.sinks}")
        if self.lag < 2:
            raise ValueError(f"LAGKV_LAG must be 2 or more, not {self.lag}")

    def score(self, layer: StoredLayer) -> torch.Tensor:
        """(B, H, S) float32: rank in the part, from 0 to below 1; above it the last tokens by age.

        Where fewer tokens are kept than always stay, the most recent of them do.
        """
        import torch

        from kv_compression.methods._rows import padding_of, turned

        padding, stored = padding_of(layer.positions), layer.keys.shape[2]
        place = torch.arange(stored, device=layer.keys.device)
        scores = (1.0 + place).expand(layer.keys.shape[:3]).clone()
        if (parts := (stored - self.sinks) // self.lag) > 1:
            ranked = slice(self.sinks, self.sinks + (parts - 1) * self.lag)
            ranks = torch.cat([self._ranks(head, padding, parts) for head in layer.by_head()], 1)
            # Of a row shorter than the batch, fewer parts are followed by a whole one.
            own = (stored - padding - self.sinks) // self.lag
            is_followed = place[ranked] < (self.sinks + (own - 1) * self.lag)[:, None]
            scores[..., ranked] = torch.where(is_followed[:, None], ranks, scores[..., ranked])
        scores[..., : self.sinks] = _ABOVE_EVERY_PLACE
        return turned(scores, -padding)

    def _ranks(self, layer: StoredLayer, padding: torch.Tensor, parts: int) -> torch.Tensor:
        """(B, 1, (parts - 1) * lag) float32 for a layer of one head: each token's rank / lag."""
        from kv_compression.methods._rows import turned

        end = self.sinks + parts * self.lag
        deviations = []
        for states in (layer.keys, layer.values):
            text = turned(states, padding)[:, :, self.sinks : end].float()
            deviations.append(_deviation(text.unflatten(2, (parts, self.lag))))
        order = (deviations[0] + deviations[1]).argsort(dim=-1, stable=True)
        return (order.argsort(dim=-1) / self.lag).flatten(2)


def _deviation(parts: torch.Tensor) -> torch.Tensor:
    """(B, 1, P - 1, L) of (B, 1, P, L, D): a token's share of its part's deviation, by softmax."""
    following = parts[:, :, 1:]
    least = following.amin(dim=3, keepdim=True)
    extent = following.amax(dim=3, keepdim=True) - least
    # A channel that is the same in all of the next part scales nothing.
    scaled = (parts[:, :, :-1] - least) / extent.masked_fill(extent == 0, math.inf)
    return scaled.std(dim=-1).softmax(dim=-1)
