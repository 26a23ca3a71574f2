"""snapkv: keep what the prompt's last tokens attend to (Li et al. 2024, arXiv 2404.14469)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from kv_compression.methods import StoredLayer


@dataclass(frozen=True)
class Method:
    """Attention of an observation window, smoothed along the text; the window itself stays."""

    window: int = field(
        default=64,
        metadata={"env": "SNAPKV_WINDOW", "help": "last tokens whose attention decides"},
    )
    kernel: int = field(
        default=5,
        metadata={"env": "SNAPKV_KERNEL", "help": "tokens that are averaged over; odd"},
    )

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"SNAPKV_WINDOW must be 1 or more, not {self.window}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"SNAPKV_KERNEL must be odd, not {self.kernel}")

    @property
    def query_window(self) -> int:
        """The observation window."""
        return self.window

    def score(self, layer: StoredLayer) -> torch.Tensor:
        """(B, H, S) float32: mean attention over window and group, pooled; the window above all.

        Where fewer tokens are kept than the window holds, the most recent of it stay.
        """
        import torch

        pooled = smoothed_attention(layer, self.window, self.kernel)
        # Attention is at most 1, so these are above every score, in their order.
        recent = 2 + layer.positions[..., pooled.shape[2] :].float()
        return torch.cat([pooled, recent.expand(-1, pooled.shape[1], -1)], dim=2)


def smoothed_attention(layer: StoredLayer, window: int, kernel: int) -> torch.Tensor:
    """(B, H, S - window) float32: what the last `window` tokens attend to, mean over the group.

    Averaged over `kernel` tokens; (B, H, 0) where no more than `window` are stored.
    """
    import torch
    from torch.nn.functional import avg_pool1d

    heads = [head.attention_of_last(window).mean(dim=(2, 3)) for head in layer.by_head()]
    before = torch.cat(heads, dim=1)[..., :-window]
    if before.shape[2] == 0:
        return before
    return avg_pool1d(before, kernel, stride=1, padding=kernel // 2)
