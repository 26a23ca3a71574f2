"""Pruning methods, one file each; the file's name is the value of KV_MODE that chooses it.

A method file defines `Method`, a frozen dataclass whose fields are its parameters and whose
`score(layer)` says how much each stored token is worth. Counts, ties, order, padding and skipped
layers are not the method's business. A field's metadata holds `env` (the environment variable that
sets it), `help`, and `choices` where the values are few.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from kv_compression import plugins

if TYPE_CHECKING:
    # Whoever asks for the methods' names and parameters need not wait for these.
    import torch
    from transformers import PreTrainedModel

    from kv_compression.budgets import Budget
    from kv_compression.rotary import Rotary


@dataclass(frozen=True)
class StoredLayer:
    """What a layer stores at the moment that it is pruned.

    keys, values: (B, H, S, D), keys with their rotary positions.
    positions: (B, H or 1, S) int64, each token's place in its row, from 0; negative for padding.
    queries: (B, Hq, Q, D), the last ones, with their rotary positions; None when a cache is
        compressed that was made elsewhere.
    query_positions: (B, Q) int64, negative for padding.
    scaling: what attention multiplies its scores by.
    rotary: the layer's rotation; None when it is not known.
    output_weight: (hidden size, Hq * D) of the projection behind attention; None when it is not
        known.
    counts, budget: how many tokens of each row stay on average over heads, and who competes for
        them; None when they are not known.
    """

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    queries: torch.Tensor | None = None
    query_positions: torch.Tensor | None = None
    scaling: float = 1.0
    layer_idx: int = 0
    rotary: Rotary | None = None
    output_weight: torch.Tensor | None = None
    counts: tuple[int, ...] | None = None
    budget: Budget | None = None

    def by_head(self) -> Iterator[StoredLayer]:
        """The key/value heads one by one, each with its group's queries.

        Float32 copies of all heads at once would be the largest tensors of a prefill.
        """
        heads = self.keys.shape[1]
        for head in range(heads):
            queries = self.queries
            if queries is not None:
                queries = queries.unflatten(1, (heads, -1))[:, head]
            yield replace(
                self,
                keys=self.keys[:, head, None],
                values=self.values[:, head, None],
                positions=self.positions.expand(-1, heads, -1)[:, head, None],
                queries=queries,
            )

    def last_queries(self, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The last `count` queries that are known, all by default, and their positions.

        Raises ValueError when none is known.
        """
        if self.queries is None or self.query_positions is None:
            raise ValueError("this method scores by attention and needs the queries of a prefill")
        count = self.queries.shape[2] if count is None else min(count, self.queries.shape[2])
        return self.queries[:, :, -count:], self.query_positions[:, -count:]

    def attention_of_last(self, count: int) -> torch.Tensor:
        """Attention of the last `count` queries, (B, H, Hq / H, count, S) float32, padding 0.

        Raises ValueError when the queries are not known.
        """
        queries, query_positions = self.last_queries(count)
        batch, heads, _, head_dim = self.keys.shape
        queries = queries.reshape(batch, heads, -1, queries.shape[2], head_dim)
        keys = self.keys.float()[:, :, None].transpose(3, 4)
        scores = queries.float() @ keys * self.scaling
        positions = self.positions[:, :, None, None]
        own = query_positions[:, None, None, :, None]
        # A query that is padding sees everything, so that no row of scores is empty.
        seen = (positions <= own) & (positions >= 0) | (own < 0)
        return scores.masked_fill(~seen, -math.inf).softmax(dim=-1) * (own >= 0)


class PruningMethod(Protocol):
    """What a method file's `Method` provides."""

    __dataclass_fields__: ClassVar[dict[str, Any]]  # a dataclass: its fields are its parameters

    @property
    def query_window(self) -> int:
        """How many of the last queries `score` needs.

        A method that wants all of a prompt's says `all_prompt_queries = True` besides; this is then
        how many it gets while decoding. One that undoes the rotation of queries says
        `needs_rotation = True`, one that weighs values by what the layer makes of them
        `needs_output_weight = True`, one whose scores depend on how many tokens stay
        `scores_by_counts = True`.
        """
        ...

    def score(self, layer: StoredLayer) -> torch.Tensor:
        """(B, H, S) float32, finite; the tokens that score highest stay."""
        ...


def prompt_queries(method: PruningMethod, tokens: int) -> int:
    """How many of the last queries of a prompt of `tokens` the method scores by."""
    wants_all = getattr(method, "all_prompt_queries", False)
    return tokens if wants_all else min(method.query_window, tokens)


def reason_unsupported(method: PruningMethod, model: PreTrainedModel) -> str | None:
    """Why `method` cannot prune a cache of `model`, in a few words; None where it can.

    Raises ValueError when the model does not let its attention be chosen.
    """
    from kv_compression import projection, rotary

    name = type(method).__module__.rpartition(".")[2]
    if getattr(method, "needs_rotation", False) and (problem := rotary.reason_unsupported(model)):
        return f"{name} undoes rotary positions, and {problem}"
    if getattr(method, "needs_output_weight", False) and (
        problem := projection.reason_unsupported(model)
    ):
        return f"{name} weighs values by the output projection, and {problem}"
    return None


def names() -> tuple[str, ...]:
    """Every method's name."""
    return plugins.names(__name__)


def method_class(name: str) -> type[PruningMethod]:
    """The `Method` class of the file `name`. Raises ValueError for an unknown name."""
    return plugins.load(__name__, name).Method
