"""Four choices over a long document, in LongBench-v2's schema.

The document is everyday life in a village. Easy: one sentence says where a person left a thing.
Hard: the thing is moved later, so that two sentences count and their order does. The wrong choices
are places where the same was done with other things, and, where it was moved, the place that the
thing was in before; the right letters are spread evenly over A to D. So neither the question nor
how often a place is named says which is right.
"""

import math
import random
from collections.abc import Callable
from typing import Any

from longctx.synthetic._village import (
    PEOPLE,
    PLACES,
    THINGS,
    everyday_life,
    sentence_counter,
    spread_depths,
)

_LETTERS = "ABCD"
# LongBench-v2's own bounds, in words.
_LENGTHS = (("short", 32_000), ("medium", 128_000), ("long", math.inf))


def four_choices(
    seed: int, count: int, document_tokens: int, count_tokens: Callable[[str], int]
) -> list[dict[str, Any]]:
    """`count` records in the schema of `zai-org/LongBench-v2`, easy and hard in turn.

    document_tokens: a document is as long as whole sentences allow without exceeding it, but every
        choice always stands in it.
    count_tokens: tokens of a text.
    A record also holds `evidence`, the sentences that the answer rests on.
    """
    tokens_of = sentence_counter(count_tokens)
    return [
        _record(seed, number, depth, letter, document_tokens, tokens_of)
        for number, (depth, letter) in enumerate(
            zip(spread_depths(seed, count), _letters(seed, count), strict=True)
        )
    ]


def _letters(seed: int, count: int) -> list[str]:
    """Right letters, each as often as the others, among easy and among hard records."""
    rng = random.Random(f"{seed}/letters")
    letters = [_LETTERS[slot // 2 % 4] for slot in range(count)]
    for parity in (0, 1):
        mine = letters[parity::2]
        rng.shuffle(mine)
        letters[parity::2] = mine
    return letters


def _record(
    seed: int,
    number: int,
    depth: float,
    letter: str,
    document_tokens: int,
    tokens_of: Callable[[str], int],
) -> dict[str, Any]:
    rng = random.Random(f"{seed}/{number}")
    hard = number % 2 == 1
    person, helper = rng.sample(PEOPLE, 2)
    thing, *others = rng.sample(THINGS, 4)
    right, *wrong = rng.sample(PLACES, 4)
    if hard:
        evidence = [
            f"{helper} put the {thing} in the {wrong[0]}.",
            f"{person} took the {thing} from the {wrong[0]} to the {right}.",
        ]
        former = rng.sample([place for place in PLACES if place not in wrong], 3)
        decoys = [
            f"{person} took the {other} from the {before} to the {place}."
            for other, before, place in zip(others, former, wrong, strict=True)
        ]
        question = f"Where was the {thing} at the end?"
    else:
        evidence = [f"{person} left the {thing} in the {right}."]
        decoys = [
            f"{person} left the {other} in the {place}."
            for other, place in zip(others, wrong, strict=True)
        ]
        question = f"Where did {person} leave the {thing}?"
    room = document_tokens - sum(map(tokens_of, (*evidence, *decoys)))
    sentences = everyday_life(rng, thing, room, tokens_of)
    for text in decoys:
        sentences.insert(rng.randint(0, len(sentences)), text)
    key_at = round(depth * len(sentences))
    sentences.insert(key_at, evidence[-1])
    if hard:
        sentences.insert(rng.randint(0, key_at), evidence[0])
    text = " ".join(sentences)
    places = iter(wrong)
    return {
        "_id": f"synthetic-{seed}-{number:04d}",
        "domain": "Synthetic",
        "sub_domain": "Village life",
        "difficulty": "hard" if hard else "easy",
        "length": next(name for name, words in _LENGTHS if len(text.split()) < words),
        "question": question,
        **{
            f"choice_{mine}": f"In the {right if mine == letter else next(places)}."
            for mine in _LETTERS
        },
        "answer": letter,
        "context": text,
        "evidence": evidence,
    }
