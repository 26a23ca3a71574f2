"""How much of a prompt's cache stays, and where."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from kv_compression.methods import PruningMethod


@dataclass(frozen=True)
class Pruning:
    """How a prompt's cache is pruned.

    keep_ratio: share of each row's tokens that stays, in (0, 1]; the count is rounded up.
    keep_tokens: number of each row's tokens that stay in each layer, in place of a share.
    prune_after: rows with fewer tokens than this are left whole.
    skip_layers: indices of the layers that are never pruned.
    prune_every: prune a layer again each time that this many tokens were added to it, down to what
        its prompt was pruned to; None for never. Rows that `prune_after` left whole stay so, but
        with `keep_tokens` they are pruned once they have grown to that length.
    Raises ValueError for values outside these ranges.
    """

    method: PruningMethod
    keep_ratio: float = 0.7
    prune_after: int = 512
    skip_layers: tuple[int, ...] = ()
    keep_tokens: int | None = None
    prune_every: int | None = None

    def __post_init__(self) -> None:
        if self.keep_tokens is not None and self.keep_tokens < 1:
            raise ValueError(f"keep_tokens must be 1 or more, not {self.keep_tokens}")
        if not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio must lie in (0, 1], not {self.keep_ratio}")
        if self.prune_after < 0:
            raise ValueError(f"prune_after must be 0 or more, not {self.prune_after}")
        if self.prune_every is not None and self.prune_every < 1:
            raise ValueError(f"prune_every must be 1 or more, not {self.prune_every}")
        if any(layer_idx < 0 for layer_idx in self.skip_layers):
            raise ValueError(f"skip_layers must hold indices from 0, not {self.skip_layers}")

    def budget(self, prompt_length: int, length: int) -> int:
        """Most tokens stored of a row that has seen `length`, `prompt_length` in its prompt."""
        if self.keep_tokens is not None:
            return self.keep_tokens if length >= self.prune_after else length
        if prompt_length < self.prune_after:
            return length
        return kept_count(prompt_length, self.keep_ratio)


def kept_count(length: int, keep_ratio: float) -> int:
    """Number of tokens kept of `length`: ceil(keep_ratio * length), so never 0 of 1 or more."""
    return min(length, math.ceil(keep_ratio * length))


def check_skip_layers(skip_layers: Iterable[int], num_layers: int) -> None:
    """Raises ValueError when a layer is named that a model of `num_layers` layers does not have."""
    unknown = sorted(layer_idx for layer_idx in skip_layers if not 0 <= layer_idx < num_layers)
    if unknown:
        raise ValueError(
            f"the model has no layer {', '.join(map(str, unknown))}: "
            f"its {num_layers} layers are 0 to {num_layers - 1}"
        )
