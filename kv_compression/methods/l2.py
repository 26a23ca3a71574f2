"""L2: keep the tokens whose keys have the lowest norm (Devoto et al. 2024, arXiv 2406.11430)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from kv_compression.methods import StoredLayer


@dataclass(frozen=True)
class Method:
    """Low key norm goes with high attention, so the tokens of lowest norm stay.

    In layer 0 a token's key norm is the same wherever it stands, up to rounding, because the
    rotary embedding keeps norms: there L2 ranks words, not occurrences.
    """

    keep: str = field(
        default="low",
        metadata={
            "env": "L2_KEEP",
            "choices": ("low", "high"),
            "help": "which key norms stay; `high` is the control that is expected to fail",
        },
    )

    query_window = 0

    def __post_init__(self) -> None:
        if self.keep not in ("low", "high"):
            raise ValueError(f"keep must be 'low' or 'high', not {self.keep!r}")

    def score(self, layer: StoredLayer) -> torch.Tensor:
        """(B, H, S) float32: the norm, or its negative.

        The norm is taken in float32: in bfloat16 about three quarters of a head's norms tie.
        """
        import torch

        norms = torch.linalg.vector_norm(layer.keys, dim=-1, dtype=torch.float32)
        return norms if self.keep == "high" else -norms
