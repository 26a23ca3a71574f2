"""keydiff: keep the keys least like the mean key (Park et al. 2025, arXiv 2504.15364)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from kv_compression.methods import StoredLayer


@dataclass(frozen=True)
class Method:
    """Keys that point elsewhere than the others carry what the others do not."""

    query_window = 0

    def score(self, layer: StoredLayer) -> torch.Tensor:
        """(B, H, S) float32: negative cosine similarity to the mean of the normalised keys."""
        import torch

        return torch.cat([self._score_head(head) for head in layer.by_head()], dim=1)

    def _score_head(self, layer: StoredLayer) -> torch.Tensor:
        from torch.nn.functional import cosine_similarity, normalize

        keys = layer.keys.float()
        is_token = (layer.positions >= 0)[..., None]
        total = (normalize(keys, dim=-1) * is_token).sum(dim=2, keepdim=True)
        mean = total / is_token.sum(dim=2, keepdim=True)
        return -cosine_similarity(keys, mean, dim=-1)
