"""bnb4: NF4 or FP4 weights (QLoRA, Dettmers et al. 2023, arXiv 2305.14314), by bitsandbytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from longctx.quantization import _bitsandbytes

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


@dataclass(frozen=True)
class Quantization:
    """4-bit weights, unpacked to the compute dtype for every product."""

    type: str = field(
        default="nf4",
        metadata={
            "env": "BNB_4BIT_TYPE",
            "choices": ("nf4", "fp4"),
            "help": "4-bit format of the weights",
        },
    )
    double_quant: bool = field(
        default=True,
        metadata={"env": "BNB_4BIT_DOUBLE_QUANT", "help": "quantize the scales too"},
    )
    compute_dtype: str = field(
        default="bfloat16",
        metadata={
            "env": "BNB_4BIT_COMPUTE_DTYPE",
            "choices": ("bfloat16", "float16", "float32"),
            "help": "dtype of the products with 4-bit weights",
        },
    )

    def check(self) -> None:
        """Raises ValueError when bitsandbytes is missing."""
        _bitsandbytes.check()

    def config(self) -> BitsAndBytesConfig:
        """4-bit weights."""
        from transformers import BitsAndBytesConfig

        _bitsandbytes.quiet()
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.type,
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=self.compute_dtype,
        )
