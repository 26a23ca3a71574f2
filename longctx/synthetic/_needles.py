"""Needles in a haystack: RULER's eight tasks, https://arxiv.org/abs/2404.06654, in our own words.

A needle says a registry number, or code, of a key. What differs is the haystack (a few sentences
over and over, prose, or other needles), the kind of key and value, and how many there are of each.
"""

import random
import uuid
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from itertools import count, cycle, islice

from longctx.synthetic._puzzle import Growing, Puzzle, prose, with_needles
from longctx.synthetic._words import ADJECTIVES, NOUNS

NOISE = "The road is long. The hill is steep. The river is wide. We walk on, one step at a time."

_GOLDEN = 0.6180339887498949  # its multiples fill 0 to 1 evenly, however many there are


@dataclass(frozen=True)
class NeedleTask:
    """haystack: "noise", "prose" or "needles". Keys and values of codes are UUIDs.

    keys: how many are in the text; asked: how many of them are asked for; values: of each key.
    """

    haystack: str
    keys: int = 1
    asked: int = 1
    values: int = 1
    has_code_keys: bool = False
    has_codes: bool = False

    def puzzle(self, rng: random.Random, offset: float, number: int) -> Puzzle:
        """The number-th puzzle of a seed; offset: what its first depth is, from 0 to 1."""
        key_of = _code if self.has_code_keys else _name
        value_of = _code if self.has_codes else _number
        keys: dict[str, None] = {}
        taken: dict[str, None] = {}
        for drawn, draw, wanted in (
            (keys, key_of, self.keys),
            (taken, value_of, self.keys * self.values),
        ):
            while len(drawn) < wanted:
                drawn[draw(rng)] = None
        each_value = iter(taken)
        values = {key: list(islice(each_value, self.values)) for key in keys}
        asked = list(values)[: self.asked]
        needles = [(key, value) for key, mine in values.items() for value in mine]
        depths = [rng.random() for _ in needles]
        # The only needle asked for, or the first one: as often at each depth.
        depths[0] = (offset + number * _GOLDEN) % 1
        answers = [value for key in asked for value in values[key]]
        word = ("code" if self.has_codes else "number") + ("s" if len(answers) > 1 else "")
        said = {key: [self._needle(key, value) for value in mine] for key, mine in values.items()}
        others = (
            self._needle(_unlike(keys, key_of, rng), _unlike(taken, value_of, rng)) for _ in count()
        )
        text = self._text(rng, others)
        told = [self._needle(*needle) for needle in needles]
        some = " and ".join(filter(None, (", ".join(asked[:-1]), asked[-1])))
        each = "all registry " if len(answers) > 1 else "the registry "
        verb = "are" if len(answers) > 1 else "is"
        return Puzzle(
            context=lambda units, padding: (
                f"Somewhere in the text below the registry {word} of something will be named. Read "
                f"it with care: you will be asked for the {word}.\n\n"
                f"{text(units, padding, told, depths)}\n"
            ),
            question=f"What {verb} {each}{word} of {some} that the text above names?",
            answer_prefix=f"{each.capitalize()}{word} of {some} that the text names {verb}",
            answers=answers,
            evidence=[needle for key in asked for needle in said[key]],
        )

    def _needle(self, key: str, value: str) -> str:
        return f"A registry {'code' if self.has_codes else 'number'} of {key} is {value}."

    def _text(
        self, rng: random.Random, others: Iterator[str]
    ) -> Callable[[int, int, list[str], list[float]], str]:
        """(units, padding, needles, depths) -> the haystack with its needles."""
        sentences, words = prose(rng)
        filler, rest, between = {
            "noise": (repeated(NOISE), repeated(*NOISE.split()), "\n"),
            "prose": (sentences, words, " "),
            "needles": (Growing(others), words, "\n"),
        }[self.haystack]

        def text(units: int, padding: int, needles: list[str], depths: list[float]) -> str:
            items = with_needles(filler.first(units), needles, depths)
            return between.join([*items, *([" ".join(rest.first(padding))] if padding else [])])

        return text


def repeated(*items: str) -> Growing:
    """The items over and over."""
    return Growing(cycle(items))


def _unlike(taken: Container[str], draw: Callable[[random.Random], str], rng: random.Random) -> str:
    while (drawn := draw(rng)) in taken:
        pass
    return drawn


def _name(rng: random.Random) -> str:
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"


def _number(rng: random.Random) -> str:
    return str(rng.randrange(1_000_000, 10_000_000))


def _code(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
