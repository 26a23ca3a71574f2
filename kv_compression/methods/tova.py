"""tova: keep what the prompt's last token attends to (Oren et al. 2024, arXiv 2401.06104)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from kv_compression.methods import StoredLayer


@dataclass(frozen=True)
class Method:
    """One choice for all heads of a layer, by the last token's mean attention over them."""

    query_window = 1

    def score(self, layer: StoredLayer) -> torch.Tensor:
        """(B, H, S) float32, the same in every head; the last token above all."""
        import torch

        heads = [head.attention_of_last(1).mean(dim=(1, 2, 3)) for head in layer.by_head()]
        weights = torch.stack(heads).mean(dim=0)
        weights[:, -1] = 2.0  # attention is at most 1
        return weights[:, None].expand(layer.keys.shape[:3])
