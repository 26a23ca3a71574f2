"""The model's rotary position embedding (RoFormer, arXiv 2104.09864), applied and undone."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Rotary:
    """Rotation of queries and keys by position, exactly as the model does it.

    angles: the model's own module, (tensor, positions (B, N)) -> cosine and sine, (B, N, R) each,
        of the first R channels of a head.
    rotate_half: the model's own pairing of channels.
    """

    angles: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    rotate_half: Callable[[torch.Tensor], torch.Tensor]

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Rotary | None":
        """The rotation of `model`, or None where it is not found."""
        angles = getattr(model.base_model, "rotary_emb", None)
        rotate_half = getattr(sys.modules[type(angles).__module__], "rotate_half", None)
        if angles is None or rotate_half is None:
            return None
        return cls(angles, rotate_half)

    def rotate(self, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotate (B, heads, N, D) by angles (B, N or 1, R); channels beyond R stay."""
        cos, sin = cos[:, None], sin[:, None]
        turned, rest = states.split([cos.shape[-1], states.shape[-1] - cos.shape[-1]], dim=-1)
        return torch.cat([turned * cos + self.rotate_half(turned) * sin, rest], dim=-1)

    def undo(self, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What (B, heads, N, D) was before it was rotated to `positions`, (B, N)."""
        cos, sin = self.angles(states, positions)
        # Some models also scale by the rotation's length, which is 1 otherwise.
        squared_length = cos.square() + sin.square()
        return self.rotate(states, cos / squared_length, -sin / squared_length)

    def mean_angles(
        self, states: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine, (B, 1, R) each, of the mean rotation over `positions`, (B, N)."""
        cos, sin = self.angles(states, positions)
        return cos.mean(dim=1, keepdim=True), sin.mean(dim=1, keepdim=True)
