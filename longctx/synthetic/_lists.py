"""Chains of variables and frequent words: three tasks of RULER in our own words."""

import random
import string
from collections.abc import Iterator
from itertools import cycle, permutations

from longctx.synthetic._needles import NOISE, repeated
from longctx.synthetic._puzzle import Growing, Puzzle, with_needles
from longctx.synthetic._words import NOUNS

_HOPS = 4
_COMMON = 10
_ZETA_2 = 1.6449340668482264
_LEAST = (0, 4, 3, 2)  # of the ellipsis and the three answers, in the shortest of texts
_SHORT = 4096  # tokens: of a shorter text RULER makes words less frequent


def variables(rng: random.Random, _context_tokens: int) -> Puzzle:
    """Which variables have a value that only the first is given, each other one by the one before.

    Five variables in one chain, in lines among the same few sentences over and over.
    """
    names: dict[str, None] = {}
    while len(names) <= _HOPS:
        names["".join(rng.choices(string.ascii_uppercase, k=5))] = None
    value = str(rng.randrange(10_000, 100_000))
    sources = [value, *names]
    lines = [f"LET {name} = {source}" for name, source in zip(names, sources, strict=False)]
    depths = sorted(rng.random() for _ in lines)
    noise, words = repeated(NOISE), repeated(*NOISE.split())

    def context(units: int, padding: int) -> str:
        told = with_needles(noise.first(units), lines, depths)
        rest = [" ".join(words.first(padding))] if padding else []
        text = "\n".join([*told, *rest])
        return (
            "The text below sets variables, in lines here and there. Keep track of them: a "
            f"variable that is set to another one has its value.\n\n{text}\n"
        )

    return Puzzle(
        context,
        question=f"Which variables have the value {value} at the end of the text above?",
        answer_prefix=f"At the end of the text, {len(lines)} variables have the value {value}:",
        answers=list(names),
        evidence=lines,
    )


def common_words(rng: random.Random, context_tokens: int) -> Puzzle:
    """Which ten words of a numbered list are its most frequent: 30 times each, others 3 times.

    Below 4,096 tokens 6 times and once.
    """
    often, seldom = (30, 3) if context_tokens >= _SHORT else (6, 1)
    pool = [one + other for one, other in permutations(NOUNS, 2)]
    rng.shuffle(pool)
    common, others = pool[:_COMMON], Growing(cycle(pool[_COMMON:]))
    seed = rng.random()

    def context(units: int, padding: int) -> str:
        other = others.first(units + padding)
        words = [*common * often, *other[:units] * seldom, *other[units:]]
        random.Random(seed).shuffle(words)
        listed = " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))
        return (
            "Here is a numbered list of words. A few of them come up far more often than all "
            f"others; keep those in mind.\n\n{listed}\n"
        )

    return Puzzle(
        context,
        question=f"Which {_COMMON} words come up most often in the list above?",
        answer_prefix=f"The {_COMMON} words that come up most often in the list are:",
        answers=common,
    )


def frequent_words(rng: random.Random, context_tokens: int) -> Puzzle:
    """Which three words of a text in code are its most frequent, by Zipf's law with exponent 2.

    The most frequent of all is an ellipsis, which is no word.
    """
    vocabulary = Growing(_coded(rng))
    ranked = ["...", *vocabulary.first(max(3, context_tokens // 50))]
    seed = rng.random()

    def context(units: int, padding: int) -> str:
        words = [ranked[0]] * padding
        for rank, word in enumerate(ranked, start=1):
            least = _LEAST[rank - 1] if rank <= len(_LEAST) else 0
            words += [word] * max(least, int(units / (rank * rank * _ZETA_2)))
        random.Random(seed).shuffle(words)
        return (
            "Here is a text in code. Find out which of its words come up most often.\n\n"
            f"{' '.join(words)}\n"
        )

    return Puzzle(
        context,
        question="Which three coded words come up most often in the text above? Dots ('...') are "
        "not words. Do not explain.",
        answer_prefix="The three coded words that come up most often are:",
        answers=ranked[1:4],
    )


def _coded(rng: random.Random) -> Iterator[str]:
    given: set[str] = set()
    while True:
        word = "".join(rng.choices(string.ascii_lowercase, k=6))
        if word not in given:
            given.add(word)
            yield word
