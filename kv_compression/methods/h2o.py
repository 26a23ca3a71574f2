"""h2o: keep what the whole prompt attends to (after Zhang et al. 2023, arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from kv_compression.methods import StoredLayer

_MOST_WEIGHTS = 2**24  # float32 weights of a layer that exist at once


@dataclass(frozen=True)
class Method:
    """The attention that a token gets from every query, over how many queries see it.

    The paper sums; the sum alone favours early tokens, which more queries see, so that the paper
    sets half of the budget aside for the most recent. The mean needs no such half, and is what
    kvpress's ObservedAttentionPress has.
    """

    all_prompt_queries = True
    # A prompt's queries are gone while decoding.
    query_window = 256

    def score(self, layer: StoredLayer) -> torch.Tensor:
        """(B, H, S) float32: mean attention over the queries that see the token, and the group."""
        import torch

        return torch.cat([self._score_head(head) for head in layer.by_head()], dim=1)

    def _score_head(self, layer: StoredLayer) -> torch.Tensor:
        """(B, 1, S) for a layer of one key/value head."""
        import torch

        queries, places = layer.last_queries()
        stored = layer.keys.shape[2]
        # Of a prompt itself, no query need look at the keys that come later.
        own = torch.equal(layer.positions[:, 0].clamp(min=-1), places.clamp(min=-1))
        layer = replace(layer, keys=layer.keys.float())
        total = layer.keys.new_zeros(len(places), 1, stored)
        step = max(1, _MOST_WEIGHTS // (queries.shape[0] * queries.shape[1] * stored))
        for begin in range(0, queries.shape[2], step):
            some = slice(begin, begin + step)
            end = min(begin + step, stored) if own else stored
            part = replace(
                layer,
                keys=layer.keys[:, :, :end],
                positions=layer.positions[:, :, :end],
                queries=queries[:, :, some],
                query_positions=places[:, some],
            )
            total[..., :end] += part.attention_of_last(step).mean(dim=2).sum(dim=2)
        return total / self._queries_that_see(layer.positions, places)

    def _queries_that_see(self, positions: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """(B, 1, S): how many of the queries at `places`, (B, Q), see each token; at least 1."""
        import torch

        places = places.clamp(min=-1).sort(dim=-1).values
        earlier = torch.searchsorted(places, positions[:, 0].clamp(min=0).contiguous())
        return (places.shape[1] - earlier).clamp(min=1)[:, None]
