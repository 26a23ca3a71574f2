"""Keys and values in 8 or 4 bits, as KIVI groups them (Liu et al. 2024, arXiv 2402.02750).

Keys have channels that are large in every token, so they are quantized channel by channel, over
groups of tokens; values token by token. Groups of tokens are counted from a row's end and padding
takes part in none, so that a row has the same codes in a batch as alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BITS = {"int8": 8, "int4": 4}
"""Bits of a stored number, by the name of the format."""

_GROUP = 64


@dataclass(frozen=True)
class Quantized:
    """Numbers between each group's lowest and highest, in equal steps.

    codes: uint8, two to a byte with 4 bits, the last dimension halved.
    step, lowest: of each group, with 1 in place of the dimension that the group runs along.
    """

    codes: torch.Tensor
    step: torch.Tensor
    lowest: torch.Tensor
    bits: int
    dtype: torch.dtype

    @classmethod
    def of(cls, numbers: torch.Tensor, dim: int, bits: int) -> Quantized:
        """Quantize floats; one group is what `dim` runs over."""
        import torch

        lowest, highest = numbers.amin(dim, keepdim=True), numbers.amax(dim, keepdim=True)
        # Half the bytes of float32 and finer than bfloat16, whose rounding would shift a group.
        kept = torch.float32 if numbers.dtype == torch.float32 else torch.float16
        lowest = lowest.to(kept)
        step = ((highest.float() - lowest.float()) / (2**bits - 1)).to(kept)
        step = step.clamp(min=torch.finfo(kept).tiny)
        levels = (numbers.float() - lowest.float()) / step.float()
        codes = levels.round().clamp(0, 2**bits - 1).to(torch.uint8)
        if bits == 4:
            codes = codes[..., 0::2] | codes[..., 1::2] << 4
        return cls(codes, step, lowest, bits, numbers.dtype)

    def numbers(self) -> torch.Tensor:
        """The floats, up to half a step each."""
        import torch

        codes = self.codes
        if self.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
        return (codes * self.step.float() + self.lowest.float()).to(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, steps and lowest values."""
        return self.codes.nbytes + self.step.nbytes + self.lowest.nbytes


class QuantizedPrefix:
    """Keys and values of a pruned prompt, (B, H, S, D) each, padded on the left.

    Row b's tokens begin at left_padding[b].

    Raises ValueError for 4 bits and an odd D.
    """

    def __init__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        left_padding: tuple[int, ...] | None,
        bits: int,
    ):
        import torch

        batch, heads, self.stored_tokens, head_dim = keys.shape
        if bits == 4 and (head_dim % 2 or values.shape[-1] % 2):
            raise ValueError(f"4 bits need an even head_dim, not {head_dim}")
        # The first group is filled up with the row's first token, which changes no group's range.
        fill = -self.stored_tokens % _GROUP
        index = torch.arange(-fill, self.stored_tokens, device=keys.device)
        first = torch.tensor(left_padding or (0,) * batch, device=keys.device)
        index = torch.maximum(index, first[:, None])[:, None, :, None]
        keys = keys.gather(2, index.expand(-1, heads, -1, head_dim))
        groups = keys.view(batch, heads, -1, _GROUP, head_dim)
        self._keys = Quantized.of(groups, dim=3, bits=bits)
        per_group = math.gcd(values.shape[-1], _GROUP)
        self._values = Quantized.of(values.unflatten(-1, (-1, per_group)), dim=-1, bits=bits)

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as floats, (B, H, S, D) each."""
        keys = self._keys.numbers().flatten(2, 3)
        return keys[:, :, -self.stored_tokens :], self._values.numbers().flatten(-2)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._keys.nbytes + self._values.nbytes
