"""bnb8: LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339) by bitsandbytes."""

from dataclasses import dataclass, field
from typing import Any

from longctx.quantization._bitsandbytes import Bitsandbytes


@dataclass(frozen=True)
class Quantization(Bitsandbytes):
    """8-bit weights; columns with outliers above the threshold stay in 16 bit."""

    threshold: float = field(
        default=6.0,
        metadata={
            "env": "LLM_INT8_THRESHOLD",
            "help": "activations above it are computed in 16 bit; 0 for none",
        },
    )

    def check(self) -> None:
        """Raises ValueError when bitsandbytes is missing or the threshold is negative."""
        super().check()
        if self.threshold < 0:
            raise ValueError(f"LLM_INT8_THRESHOLD={self.threshold} must be 0 or more")

    def options(self) -> dict[str, Any]:
        """8-bit weights."""
        return {"load_in_8bit": True, "llm_int8_threshold": self.threshold}
