"""bnb8: LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339) by bitsandbytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from longctx.quantization import _bitsandbytes

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


@dataclass(frozen=True)
class Quantization:
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
        _bitsandbytes.check()
        if self.threshold < 0:
            raise ValueError(f"LLM_INT8_THRESHOLD={self.threshold} must be 0 or more")

    def config(self) -> BitsAndBytesConfig:
        """8-bit weights."""
        from transformers import BitsAndBytesConfig

        _bitsandbytes.quiet()
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=self.threshold)
