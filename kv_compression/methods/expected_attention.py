"""expected_attention: keep what future queries will attend to (Devoto et al., arXiv 2510.00636)."""

from dataclasses import dataclass, field

import torch

from kv_compression.methods import StoredLayer


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

    # Enough for a mean and a covariance, where a prompt's queries are gone.
    query_window = 256

    def __post_init__(self) -> None:
        if self.future < 1:
            raise ValueError(f"EXPECTED_FUTURE must be 1 or more, not {self.future}")
        if self.sinks < 0:
            raise ValueError(f"EXPECTED_SINKS must be 0 or more, not {self.sinks}")

    def score(self, layer: StoredLayer) -> torch.Tensor:
        """(B, H, S) float32: expected attention times the value's norm; the first tokens above."""
        mean, covariance = self._expected_queries(layer)
        batch, heads, _, head_dim = layer.keys.shape
        mean = mean.reshape(batch, heads, -1, head_dim)
        covariance = covariance.reshape(batch, heads, -1, head_dim, head_dim)
        keys = layer.keys.float()
        logits = torch.einsum("bhgd,bhsd->bhgs", mean, keys) * layer.scaling
        for group in range(mean.shape[2]):
            spread = (keys @ covariance[:, :, group] * keys).sum(dim=-1)
            logits[:, :, group] += spread * layer.scaling**2 / 2
        is_sink = layer.positions < self.sinks  # padding too, which is nobody's to keep
        weights = logits.masked_fill(is_sink[:, :, None], -torch.inf).softmax(dim=-1)
        weights = weights.nan_to_num().mean(dim=2)  # a row of sinks alone has no weights
        norms = torch.linalg.vector_norm(layer.values, dim=-1, dtype=torch.float32)
        scores = weights * norms
        return scores.masked_fill(is_sink, torch.finfo(torch.float32).max)

    def _expected_queries(self, layer: StoredLayer) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean, (B, Hq, D), and covariance, (B, Hq, D, D), of the queries that are to come."""
        queries, positions = layer.last_queries()
        if layer.rotary is None:
            raise ValueError("expected_attention needs a model with rotary positions")
        counted = (positions >= self.sinks)[:, None, :, None]
        queries = layer.rotary.undo(queries.float(), positions.clamp(min=0)) * counted
        count = counted.sum(dim=2).clamp(min=1)
        mean = queries.sum(dim=2) / count
        centred = (queries - mean[:, :, None]) * counted
        covariance = centred.transpose(2, 3) @ centred / count[..., None]

        future = positions[:, -1:] + 1 + torch.arange(self.future, device=positions.device)
        angles = layer.rotary.mean_angles(queries, future)
        mean = layer.rotary.rotate(mean[:, :, None], *angles)[:, :, 0]
        covariance = layer.rotary.rotate(covariance, *angles).transpose(2, 3)
        return mean, layer.rotary.rotate(covariance, *angles).transpose(2, 3)
