"""How much of a prompt's cache stays, and where."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from kv_compression.budgets import Budget
from kv_compression.budgets.uniform import Budget as Uniform
from kv_compression.methods import PruningMethod


@dataclass(frozen=True)
class Pruning:
    """How a prompt's cache is pruned.

    keep_ratio: share of each row's tokens that stays, in (0, 1], on average over heads and layers.
    keep_tokens: number of each row's tokens that stay so, in place of a share.
    prune_after: rows with fewer tokens than this are left whole.
    skip_layers: indices of the layers that are never pruned.
    prune_every: prune a layer again each time that this many tokens were added to it, down to what
        its prompt was pruned to; None for never. Rows that `prune_after` left whole stay so, but
        with `keep_tokens` they are pruned once they have grown to that length.
    rounding: of the count that `keep_ratio` gives: "up", or "down", as kvpress rounds it.
    budget: how that is shared out among heads and layers.
    Raises ValueError for values outside these ranges.
    """

    method: PruningMethod
    keep_ratio: float = 0.7
    prune_after: int = 512
    skip_layers: tuple[int, ...] = ()
    keep_tokens: int | None = None
    prune_every: int | None = None
    rounding: str = "up"
    budget: Budget = Uniform()

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
        if self.rounding not in ("up", "down"):
            raise ValueError(f"rounding must be up or down, not {self.rounding}")

    def most_tokens(self, prompt_length: int, length: int, place: int = 0, layers: int = 1) -> int:
        """Most tokens a head, on average, that the layer `place` of the pruned `layers` stores.

        Of a row that has seen `length` tokens, `prompt_length` of them in its prompt.
        """
        if (length if self.keep_tokens is not None else prompt_length) < self.prune_after:
            return length
        count = self.keep_tokens
        if count is None:
            count = kept_count(prompt_length, self.keep_ratio, self.rounding)
        return self.budget.of_layer(count, prompt_length, place, layers)


def kept_count(length: int, keep_ratio: float, rounding: str = "up") -> int:
    """Number of tokens kept of `length`: keep_ratio * length, rounded, and never 0 of 1 or more.

    rounding: "up" or "down". Down is what kvpress's ScorerPress keeps at `compression_ratio` =
    1 - `keep_ratio`, its floating-point errors included: 99 of 1,000 at 0.1.
    """
    if rounding == "down":
        removed = round(1 - keep_ratio, 12)  # the decimal number that one gives kvpress
        return min(length, max(1, int(length * (1 - removed))))
    # Of the decimal number that was written: in floats 0.07 * 100 is above 7.
    return min(length, math.ceil(Decimal(str(keep_ratio)) * length))


def check_skip_layers(skip_layers: Iterable[int], num_layers: int) -> None:
    """Raises ValueError when a layer is named that a model of `num_layers` layers does not have."""
    unknown = sorted(layer_idx for layer_idx in skip_layers if not 0 <= layer_idx < num_layers)
    if unknown:
        raise ValueError(
            f"the model has no layer {', '.join(map(str, unknown))}: "
            f"its {num_layers} layers are 0 to {num_layers - 1}"
        )
