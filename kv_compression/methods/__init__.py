"""Pruning methods, one file each; the file's name is the value of KV_MODE that chooses it.

A method file defines `Method`, a frozen dataclass whose fields are its parameters and whose
`score(layer)` says how much each stored token is worth. Counts, ties, order, padding and skipped
layers are not the method's business. A field's metadata holds `env` (the environment variable that
sets it), `help`, and `choices` where the values are few.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch

from kv_compression import plugins


@dataclass(frozen=True)
class PrefilledLayer:
    """A layer whose prefill is done; Q = S where the prompt was prefilled at once.

    keys, values: (B, H, S, D), keys with their rotary positions.
    queries: (B, Hq, Q, D) of the last Q tokens, with their rotary positions; None when a cache is
        compressed that was made elsewhere.
    scaling: what attention multiplies its scores by.
    starts: for each row the number of padding tokens before its tokens; None for none.
    """

    keys: torch.Tensor
    values: torch.Tensor
    queries: torch.Tensor | None
    scaling: float
    starts: tuple[int, ...] | None
    layer_idx: int

    @cached_property
    def positions(self) -> torch.Tensor:
        """(B, S) int64: each token's place in its row, from 0; negative for padding."""
        index = torch.arange(self.keys.shape[2], device=self.keys.device)
        first = torch.tensor(self.starts or (0,) * self.keys.shape[0], device=self.keys.device)
        return index - first[:, None]

    def attention_of_last(self, count: int) -> torch.Tensor:
        """Attention of the last `count` queries, (B, H, Hq / H, count, S) float32, padding 0.

        Raises ValueError when the queries are not known.
        """
        if self.queries is None:
            raise ValueError("this method scores by attention and needs the queries of a prefill")
        batch, heads, stored, head_dim = self.keys.shape
        count = min(count, self.queries.shape[2])
        queries = self.queries[:, :, -count:].reshape(batch, heads, -1, count, head_dim)
        keys = self.keys.float()[:, :, None].transpose(3, 4)
        scores = queries.float() @ keys * self.scaling
        index = torch.arange(stored, device=scores.device)
        own = index[-count:, None]
        # A query that is padding sees itself alone, so that no row of scores is empty.
        seen = (index <= own) & (self.positions >= 0)[:, None, None, None] | (index == own)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
        is_query = (self.positions[:, -count:] >= 0)[:, None, None, :, None]
        return weights * is_query


class PruningMethod(Protocol):
    """What a method file's `Method` provides."""

    __dataclass_fields__: ClassVar[dict[str, Any]]  # a dataclass: its fields are its parameters

    def score(self, layer: PrefilledLayer) -> torch.Tensor:
        """(B, H, S) float32, finite; the tokens that score highest stay."""
        ...


def names() -> tuple[str, ...]:
    """Every method's name."""
    return plugins.names(__name__)


def method_class(name: str) -> type[PruningMethod]:
    """The `Method` class of the file `name`. Raises ValueError for an unknown name."""
    return plugins.load(__name__, name).Method
