"""A projection's weights as the decode kernels read them: floats, int8 rows or 4-bit blocks."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

KINDS = ("float", "int8", "4bit")

BLOCK, NESTED_BLOCK = 64, 256
"""4-bit weights that share a scale, and scales that share one: all that the kernels know."""


def is_plain(module: torch.nn.Module) -> bool:
    """Whether calling the module is its class's forward and nothing else."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return not hooks and "forward" not in module.__dict__


@dataclass(frozen=True)
class Weight:
    """(N, K) weights, stored row by row.

    data: (N, K) floats or int8; in 4 bits two numbers a byte, N * K / 2 of them.
    scale: int8: (N,) float32, the row's largest number; 4 bits: the scale of each 64 weights, as
        float32 or, with `nested`, as uint8 codes.
    nested: the scale of each 256 scales.
    offset: added to nested scales, a tensor of one number.
    code, nested_code: what a 4-bit code and a scale's code stand for.
    table: the codes' numbers in bfloat16 as eight words: their high bytes, then their low ones.
    """

    kind: str
    out_features: int
    in_features: int
    data: torch.Tensor
    bias: torch.Tensor | None
    scale: torch.Tensor
    nested: torch.Tensor | None
    offset: torch.Tensor
    code: torch.Tensor
    nested_code: torch.Tensor
    table: tuple[int, ...] = (0,) * 8

    @classmethod
    def of(cls, linear: Any) -> "Weight | None":
        """The weights of a projection; None where the kernels do not know its kind."""
        kind = type(linear)
        if not is_plain(linear) or not hasattr(linear, "out_features"):
            return None
        shape = linear.out_features, linear.in_features
        if kind is torch.nn.Linear and type(linear.weight) is torch.nn.Parameter:
            data, bias = linear.weight, linear.bias
            return cls("float", *shape, data, bias, data, None, data, data, data)
        # Others give their classes the same names.
        if not kind.__module__.startswith("bitsandbytes."):
            return None
        data, bias = linear.weight, linear.bias
        if kind.__name__ == "Linear8bitLt" and data.dtype == torch.int8:
            # It moves from the weight to the state in the first product.
            scale = linear.state.SCB if linear.state.SCB is not None else data.SCB
            return cls("int8", *shape, data.data, bias, scale, None, scale, scale, scale)
        if kind.__name__ == "Linear4bit":
            return cls._of_4bit(data, bias)
        return None

    @classmethod
    def _of_4bit(cls, data: Any, bias: torch.Tensor | None) -> "Weight | None":
        state = getattr(data, "quant_state", None)
        if state is None or data.dtype != torch.uint8 or state.blocksize != BLOCK:
            return None
        out_features, in_features = state.shape
        nested = state.state2 if state.nested else None
        if in_features % BLOCK or (nested is not None and nested.blocksize != NESTED_BLOCK):
            return None
        return cls(
            "4bit",
            out_features,
            in_features,
            data.data,
            bias,
            state.absmax,
            None if nested is None else nested.absmax,
            state.absmax if nested is None else state.offset,
            state.code,
            state.code if nested is None else nested.code,
            _table(tuple(state.code.tolist())),
        )

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """data, scale, nested, offset and bias; what is missing is stood for by `data`."""
        nested = self.data if self.nested is None else self.nested
        return (
            self.data,
            self.scale,
            nested,
            self.offset,
            self.data if self.bias is None else self.bias,
        )


@cache
def _table(code: tuple[float, ...]) -> tuple[int, ...]:
    bits = torch.tensor(code, dtype=torch.bfloat16).view(torch.int16)
    planes = torch.stack([bits >> 8, bits & 255]).to(torch.uint8)
    return tuple(planes.view(torch.int32).flatten().tolist())
