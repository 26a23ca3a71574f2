"""Questions about a text of any length, and how much filler makes a prompt just long enough."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from longctx.synthetic._village import endless_life

Item = TypeVar("Item")

_PROBE = 8
_PRECISION = 1000  # a thousandth of the tokens asked for may be missing


@dataclass(frozen=True)
class Puzzle:
    """A question whose text can be of any length.

    context: (units, padding) -> the text with so many units of filler, and so many of the smaller
        units that fill what is left over. It grows by both; what the answer rests on stays in it.
    evidence: the texts of it that the answer rests on, where these can be named.
    """

    context: Callable[[int, int], str]
    question: str
    answer_prefix: str
    answers: list[str]
    evidence: list[str] = field(default_factory=list)


class Growing:
    """The first items of a stream, as many as are asked for, the same ones each time."""

    def __init__(self, stream: Iterator[str]):
        self._stream = stream
        self._known: list[str] = []

    def first(self, count: int) -> list[str]:
        """The first `count` items."""
        self._known += islice(self._stream, max(0, count - len(self._known)))
        return self._known[:count]


def prose(rng: random.Random) -> tuple[Growing, Growing]:
    """Sentences of everyday life, and the words of other ones, to fill up with."""
    sentences, more = endless_life(rng), endless_life(random.Random(rng.random()))
    return Growing(sentences), Growing(word for sentence in more for word in sentence.split())


def with_needles(
    items: Sequence[str], needles: Sequence[str], depths: Sequence[float]
) -> list[str]:
    """The items with each needle at its depth, from 0 to 1."""
    places = sorted(zip((round(depth * len(items)) for depth in depths), needles, strict=True))
    found: list[str] = []
    begin = 0
    for place, needle in places:
        found += [*items[begin:place], needle]
        begin = place
    return [*found, *items[begin:]]


def fitted(tokens_of: Callable[[int, int], int], limit: int) -> tuple[int, int] | None:
    """Units of filler and padding of the longest text of at most `limit` tokens; None for none.

    At most a thousandth is missing where padding is fine enough. A text is counted some five times
    whatever its length: tokens grow nearly evenly with units, so the next guess is a good one.
    """
    smallest = tokens_of(0, 0)
    if smallest > limit:
        return None
    units, reached = _most(lambda n: tokens_of(n, 0), smallest, limit)
    padding, _ = _most(lambda n: tokens_of(units, n), reached, limit)
    return units, padding


def _most(tokens_of: Callable[[int], int], smallest: int, limit: int) -> tuple[int, int]:
    """The most units of at most `limit` tokens, or nearly so many, and their tokens.

    smallest: tokens of 0 units.
    """
    units, reached, too_many = 0, smallest, None
    guess = min(_PROBE, limit - smallest)
    while guess > units and limit - reached > limit // _PRECISION:
        tokens = tokens_of(guess)
        per_unit = (tokens - reached) / (guess - units)
        if tokens > limit:
            too_many = guess
        else:
            units, reached = guess, tokens
        if per_unit <= 0:
            break
        guess = units + int((limit - reached) / per_unit)
        if too_many is not None:
            guess = min(guess, too_many - 1)
    return units, reached
