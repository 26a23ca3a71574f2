"""bnb4: NF4 or FP4 weights (QLoRA, Dettmers et al. 2023, arXiv 2305.14314), by bitsandbytes."""

from dataclasses import dataclass, field
from typing import Any

from longctx.quantization._bitsandbytes import Bitsandbytes


@dataclass(frozen=True)
class Quantization(Bitsandbytes):
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
        default=True, metadata={"env": "BNB_4BIT_DOUBLE_QUANT", "help": "quantize the scales too"}
    )
    compute_dtype: str = field(
        default="bfloat16",
        metadata={
            "env": "BNB_4BIT_COMPUTE_DTYPE",
            "choices": ("bfloat16", "float16", "float32"),
            "help": "dtype of the products with 4-bit weights",
        },
    )

    def options(self) -> dict[str, Any]:
        """4-bit weights."""
        return {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.type,
            "bnb_4bit_use_double_quant": self.double_quant,
            "bnb_4bit_compute_dtype": self.compute_dtype,
        }
