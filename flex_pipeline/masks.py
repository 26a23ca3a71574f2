"""Attention masks, one factory each, over the positions of a row's tokens.

Position 0 is a row's first token; padding has no position. In every mask a token sees itself, and
in all but `prefix` nothing after itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


class Span(NamedTuple):
    """Positions from `first` to `last`, both included: numbers, or integer tensors of them."""

    first: Any
    last: Any


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees, for single positions and for whole blocks of them.

    sees: (query positions, key positions), integer tensors that broadcast -> bool, true where the
        query sees the key. Fit for a FlexAttention mask function.
    touches: (queries, keys), Spans of tensors -> whether any of the queries sees any of the keys.
    covers: (queries, keys), Spans of tensors or of numbers -> whether each of the queries sees each
        of the keys.
    """

    sees: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    touches: Callable[[Span, Span], torch.Tensor]
    covers: Callable[[Span, Span], Any]


def causal() -> Mask:
    """Every token up to itself."""
    return Mask(
        sees=lambda query, key: key <= query,
        touches=lambda queries, keys: keys.first <= queries.last,
        covers=lambda queries, keys: keys.last <= queries.first,
    )


def sliding_window(window: int) -> Mask:
    """The last `window` tokens, itself included (Longformer, arXiv 2004.05150; Mistral 7B)."""
    return sink_window(0, window)


def sink_window(sinks: int, window: int) -> Mask:
    """The first `sinks` tokens and the last `window`, itself included (arXiv 2309.17453)."""
    _check("sinks", sinks, least=0)
    _check("window", window, least=1)
    return Mask(
        sees=lambda query, key: (key <= query) & ((key > query - window) | (key < sinks)),
        touches=lambda queries, keys: (
            (keys.first <= queries.last)
            & ((keys.last > queries.first - window) | (keys.first < sinks))
        ),
        # All keys in the window, all among the sinks, or no gap between the two.
        covers=lambda queries, keys: (
            (keys.last <= queries.first)
            & (
                (keys.first > queries.last - window)
                | (keys.last < sinks)
                | (queries.last - window < sinks)
            )
        ),
    )


def prefix(prefix: int) -> Mask:
    """The first `prefix` tokens see each other both ways, the rest is causal.

    The prefix language model of T5 (arXiv 1910.10683). A token can only see later ones that are in
    the same forward, so a prompt must be prefilled in one piece.
    """
    _check("prefix", prefix, least=0)
    return Mask(
        # A key that is both after the query and in the prefix has its query in the prefix, too.
        sees=lambda query, key: (key <= query) | (key < prefix),
        touches=lambda queries, keys: (keys.first <= queries.last) | (keys.first < prefix),
        covers=lambda queries, keys: (keys.last <= queries.first) | (keys.last < prefix),
    )


def dilated(window: int, dilation: int) -> Mask:
    """`window` tokens, itself and each `dilation`-th before it (Longformer, arXiv 2004.05150).

    A block is skipped only beyond the window's reach of window * dilation tokens: within it, as
    long as `dilation` is shorter than a block, every block holds a token that is seen.
    """
    _check("window", window, least=1)
    _check("dilation", dilation, least=1)
    reach = window * dilation

    def sees(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        distance = query - key
        return (distance >= 0) & (distance < reach) & (distance % dilation == 0)

    def touches(queries: Span, keys: Span) -> torch.Tensor:
        # Between two spans every distance from the nearest to the farthest occurs.
        nearest = (queries.first - keys.last).clamp(min=0)
        farthest = (queries.last - keys.first).clamp(max=reach - 1)
        return farthest // dilation * dilation >= nearest

    def covers(queries: Span, keys: Span) -> Any:
        nearest, farthest = queries.first - keys.last, queries.last - keys.first
        regular = (nearest == farthest) & (nearest % dilation == 0) if dilation > 1 else True
        return (nearest >= 0) & (farthest < reach) & regular

    return Mask(sees, touches, covers)


FACTORIES: dict[str, Callable[..., Mask]] = {
    factory.__name__: factory for factory in (causal, sliding_window, sink_window, prefix, dilated)
}


def parameters(name: str) -> tuple[str, ...]:
    """Names of the parameters that the mask `name` takes."""
    return tuple(inspect.signature(FACTORIES[name]).parameters)


def _check(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value}")
