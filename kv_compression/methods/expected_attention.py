"""expected_attention: keep what future queries will attend to (Devoto et al., arXiv 2510.00636)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from kv_compression.methods import StoredLayer

_TERMS = 1024  # of a sum that one block of a GPU adds up


@dataclass(frozen=True)
class Method:
    """Queries before rotation are taken as normal; their mean and covariance are the prompt's.

    Rotated by the mean rotation of the next positions they give every key's expected attention in
    closed form; that, times the norm of the value, is the score. The first tokens, whose attention
    follows no such law, are left out of the statistics and always stay.
    """

    future: int = field(
        default=512,
        metadata={"env": "EXPECTED_FUTURE", "help": "next tokens whose queries are expected"},
    )
    sinks: int = field(
        default=4,
        metadata={"env": "EXPECTED_SINKS", "help": "first tokens that always stay"},
    )

    all_prompt_queries = needs_rotation = True
    # Enough for a mean and a covariance, where a prompt's queries are gone.
    query_window = 256

    def __post_init__(self) -> None:
        if self.future < 1:
            raise ValueError(f"EXPECTED_FUTURE must be 1 or more, not {self.future}")
        if self.sinks < 0:
            raise ValueError(f"EXPECTED_SINKS must be 0 or more, not {self.sinks}")

    def score(self, layer: StoredLayer) -> torch.Tensor:
        """(B, H, S) float32: expected attention times the value's norm; the first tokens above."""
        import torch

        scores = torch.stack([self._score_head(head) for head in layer.by_head()], dim=1)
        return scores.masked_fill(self._is_sink(layer.positions), torch.finfo(torch.float32).max)

    def _is_sink(self, positions: torch.Tensor) -> torch.Tensor:
        """Tokens that always stay, and padding, which is nobody's to keep."""
        return positions < self.sinks

    def _score_head(self, layer: StoredLayer) -> torch.Tensor:
        """(B, S) float32 for a layer of one key/value head."""
        import torch

        mean, covariance = self._expected_queries(layer)
        keys = layer.keys.float()  # (B, 1, S, D)
        logits = (keys @ mean[..., None])[..., 0] * layer.scaling
        logits += (keys @ covariance * keys).sum(dim=-1) * layer.scaling**2 / 2
        weights = logits.masked_fill(self._is_sink(layer.positions), -math.inf).softmax(dim=-1)
        weights = weights.nan_to_num().mean(dim=1)  # a row of sinks alone has no weights
        return weights * torch.linalg.vector_norm(layer.values[:, 0].float(), dim=-1)

    def _expected_queries(self, layer: StoredLayer) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean, (B, G, D), and covariance, (B, G, D, D), of the queries to come of a group."""
        import torch

        queries, positions = layer.last_queries()
        if layer.rotary is None:
            raise ValueError("expected_attention needs the rotation of the model's layers")
        queries = queries.float()
        counted = ~self._is_sink(positions)[:, None, :, None]
        queries = layer.rotary.undo(queries, positions.clamp(min=0)) * counted
        count = counted.sum(dim=2).clamp(min=1)
        mean = queries.sum(dim=2) / count
        centred = (queries - mean[:, :, None]) * counted
        covariance = _sum_of_squares(centred) / count[..., None]

        future = positions[:, -1:] + 1 + torch.arange(self.future, device=positions.device)
        angles = layer.rotary.mean_angles(queries, future)
        mean = layer.rotary.rotate(mean[:, :, None], *angles)[:, :, 0]
        covariance = layer.rotary.rotate(covariance, *angles).transpose(2, 3)
        return mean, layer.rotary.rotate(covariance, *angles).transpose(2, 3)


def _sum_of_squares(vectors: torch.Tensor) -> torch.Tensor:
    """Sum over n of v_n v_n^T, (B, G, D, D), of (B, G, N, D).

    By parts of N: one product of so few rows and so many terms keeps few of a GPU's cores busy.
    """
    whole = vectors.shape[2] // _TERMS * _TERMS
    parts = vectors[:, :, :whole].unflatten(2, (-1, _TERMS))
    rest = vectors[:, :, whole:]
    return (parts.transpose(3, 4) @ parts).sum(dim=2) + rest.transpose(2, 3) @ rest
