"""Layers that compete with each other for the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kv_compression.budgets import Budget
from kv_compression.selection import PooledSelection, select_pooled

if TYPE_CHECKING:
    from kv_compression.layer import PrunedLayer


@dataclass(frozen=True)
class _Waiting:
    """A layer that has read its prompt and stores it whole, until all others have."""

    layer: PrunedLayer
    scores: torch.Tensor  # (B, H, S)


class ModelPool:
    """What `layers` layers have in common: each notes its scores, and with the last one all store.

    All of them see the same tokens and keep as many on average.
    """

    def __init__(self, layers: int):
        self._layers = layers
        self._waiting: list[_Waiting] = []

    def note(
        self,
        layer: PrunedLayer,
        scores: torch.Tensor,
        left_padding: torch.Tensor | None,
        counts: Sequence[int],
        budget: Budget,
    ) -> None:
        """Take a layer's scores, (B, H, S); counts[b] tokens of row b are to stay on average.

        left_padding: (B, 1) int64 or None.
        """
        self._waiting.append(_Waiting(layer, scores))
        if len(self._waiting) < self._layers:
            return
        waiting, self._waiting = self._waiting, []
        together = torch.cat([each.scores.to(scores.device) for each in waiting], dim=1)
        kept = select_pooled(
            together,
            left_padding,
            [count * together.shape[1] for count in counts],
            [budget.guaranteed(count) for count in counts],
        )
        heads = [each.scores.shape[1] for each in waiting]
        for each, own in zip(waiting, _divided(kept, heads, scores.shape[2]), strict=True):
            layer = each.layer
            layer._store(PooledSelection(own.index.to(each.scores.device), own.totals))


def _divided(kept: PooledSelection, heads: Sequence[int], stored: int) -> list[PooledSelection]:
    """What is kept of each of the layers that have so many heads, one after the other."""
    limits = torch.tensor([0, *heads], device=kept.index.device).cumsum(0) * stored
    rows = [
        index[len(index) - total :] for index, total in zip(kept.index, kept.totals, strict=True)
    ]
    bounds = torch.stack([torch.searchsorted(row, limits) for row in rows]).tolist()
    parts = []
    for number in range(len(heads)):
        mine = [
            row[bound[number] : bound[number + 1]] - limits[number]
            for row, bound in zip(rows, bounds, strict=True)
        ]
        wide = max(map(len, mine))
        filled = [torch.cat([each.new_zeros(wide - len(each)), each]) for each in mine]
        parts.append(PooledSelection(torch.stack(filled), tuple(map(len, mine))))
    return parts
