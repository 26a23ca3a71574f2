"""chunkkv: keep whole chunks of neighbouring tokens (Liu et al. 2025, arXiv 2502.00299)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kv_compression.methods import snapkv

if TYPE_CHECKING:
    import torch

    from kv_compression.methods import StoredLayer


@dataclass(frozen=True)
class Method:
    """A text falls into chunks from its beginning; a layer's heads keep the same ones.

    A chunk's score is the mean of its tokens' SnapKV scores, where a token of the observation
    window has the largest of the others' plus 1. A text shorter than a chunk is scored by tokens.
    """

    chunk: int = field(
        default=20,
        metadata={"env": "CHUNKKV_CHUNK", "help": "tokens of a chunk"},
    )
    window: int = field(
        default=64,
        metadata={"env": "CHUNKKV_WINDOW", "help": "last tokens whose attention decides"},
    )
    kernel: int = field(
        default=5,
        metadata={"env": "CHUNKKV_KERNEL", "help": "tokens that are averaged over; odd"},
    )

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"CHUNKKV_CHUNK must be 1 or more, not {self.chunk}")
        if self.window < 1:
            raise ValueError(f"CHUNKKV_WINDOW must be 1 or more, not {self.window}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"CHUNKKV_KERNEL must be odd, not {self.kernel}")

    @property
    def query_window(self) -> int:
        """The observation window."""
        return self.window

    def score(self, layer: StoredLayer) -> torch.Tensor:
        """(B, H, S) float32, the same in every head and in all of a chunk.

        Chunks of the window alone, which would all be equal, are above the others, and of them the
        most recent tokens.
        """
        import torch
        from torch.nn.functional import pad

        from kv_compression.methods._rows import padding_of, turned

        attention = snapkv.smoothed_attention(layer, self.window, self.kernel)
        in_window = layer.keys.shape[2] - attention.shape[2]
        largest = pad(attention, (0, 1)).amax(dim=(1, 2))[:, None, None]
        recent = (largest + 1).expand(-1, attention.shape[1], in_window)
        padding, stored = padding_of(layer.positions), layer.keys.shape[2]
        tokens = turned(torch.cat([attention, recent], dim=2), padding)
        length = (stored - padding)[:, None, None]
        place = torch.arange(stored, device=tokens.device)
        chunks = self._means((tokens * (place < length)).sum(dim=1, keepdim=True), length)
        scores = torch.where(length < self.chunk, tokens, chunks)

        first_of_chunk = place // self.chunk * self.chunk
        first_of_chunk = torch.where(length < self.chunk, place, first_of_chunk)
        above = 2.0 * layer.keys.shape[1]  # a window's token counts at most 2 in every head
        scores = torch.where(first_of_chunk >= length - self.window, above + 1 + place, scores)
        return turned(scores, -padding)

    def _means(self, tokens: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Each chunk's mean at all of its tokens, (B, 1, S); rows of `length`, (B, 1, 1)."""
        import torch
        from torch.nn.functional import pad

        stored = tokens.shape[2]
        chunks = pad(tokens, (0, -stored % self.chunk)).unflatten(2, (-1, self.chunk))
        begins = torch.arange(0, stored, self.chunk, device=tokens.device)
        sizes = (length - begins).clamp(min=1, max=self.chunk)
        return (chunks.sum(dim=3) / sizes).repeat_interleave(self.chunk, dim=2)[..., :stored]
