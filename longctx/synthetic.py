"""Stories that the project writes itself, in NarrativeQA's schema, of any length in tokens.

People carry things between places; every story has one question, whose answer stands at a known
depth. All is decided by the seed and the story's number; a story's question and answer do not
depend on its length.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_PEOPLE = (
    "Anna", "Boris", "Clara", "Dmitri", "Elena", "Farid", "Greta", "Hugo", "Ines", "Jonas",
    "Karin", "Leo", "Mara", "Nils", "Olga", "Pablo", "Rosa", "Stefan", "Tilda", "Victor",
)  # fmt: skip
_THINGS = (
    "brass lamp", "blue umbrella", "old map", "silver flute", "wooden box", "red scarf",
    "glass bottle", "leather book", "copper kettle", "green lantern", "iron key", "paper kite",
    "ivory comb", "stone bowl", "velvet hat", "tin whistle", "clay jug", "wool blanket",
)  # fmt: skip
_PLACES = (
    "mill", "garden", "library", "harbour", "kitchen", "tower", "stable", "chapel", "market",
    "cellar", "orchard", "bakery", "lighthouse", "school", "attic", "workshop", "inn", "barn",
)  # fmt: skip
_WEATHER = ("rain", "snow", "wind", "fog", "sun", "frost", "thunder", "drizzle")
_TIMES = ("morning", "afternoon", "evening", "night", "day", "week")
_MOODS = ("tired", "cheerful", "worried", "quiet", "hungry", "curious", "proud", "restless")
_ANIMALS = ("dog", "cat", "goat", "crow", "horse", "goose", "fox", "owl")


@dataclass(frozen=True)
class _Plot:
    """The one fact that is asked for, and what must not be said elsewhere."""

    key_sentence: str
    earlier_sentence: str | None
    question: str
    answers: tuple[str, str]
    thing: str
    depth: float


def stories(
    seed: int, count: int, document_tokens: int, count_tokens: Callable[[str], int]
) -> list[dict[str, Any]]:
    """`count` records in the schema of `deepmind/narrativeqa`, each with a story of its own.

    document_tokens: a story is as long as whole sentences allow without exceeding it, but it
        always holds its key sentence.
    count_tokens: tokens of a text.
    A record's `question` also holds `answer_depth`, the answer's place in the story from 0 to 1.
    """
    # A sentence's own tokens, the space before it included, add up to the story's.
    tokens_of = lru_cache(maxsize=100_000)(lambda sentence: count_tokens(" " + sentence))
    return [_record(seed, number, count, document_tokens, tokens_of) for number in range(count)]


def _record(
    seed: int, number: int, count: int, document_tokens: int, tokens_of: Callable[[str], int]
) -> dict[str, Any]:
    rng = random.Random(f"{seed}/{number}")
    # Depths are spread evenly over the stories, in an order that goes with nothing else.
    depths = [(slot + 0.5) / count for slot in range(count)]
    random.Random(f"{seed}/depths").shuffle(depths)
    plot = _plot(rng, depths[number])
    sentences, key_at = _tell(rng, plot, document_tokens, tokens_of)
    text = " ".join(sentences)
    name = f"synthetic-{seed}-{number:04d}"
    return {
        "document": {
            "id": name,
            "kind": "synthetic",
            "url": "",
            "file_size": len(text),
            "word_count": len(text.split()),
            "start": sentences[0],
            "end": sentences[-1],
            "summary": {
                "text": " ".join([*sentences[:2], plot.key_sentence, *sentences[-1:]]),
                "tokens": [],
                "url": "",
                "title": name,
            },
            "text": text,
        },
        "question": {
            "text": plot.question,
            "tokens": plot.question.split(),
            "answer_depth": round(len(" ".join(sentences[:key_at])) / max(1, len(text)), 4),
        },
        "answers": [{"text": answer, "tokens": answer.split()} for answer in plot.answers],
    }


def _plot(rng: random.Random, depth: float) -> _Plot:
    person, other = rng.sample(_PEOPLE, 2)
    thing = rng.choice(_THINGS)
    place, former = rng.sample(_PLACES, 2)
    kind = rng.choice(("left", "gave", "moved"))
    if kind == "left":
        return _Plot(
            key_sentence=f"{person} left the {thing} in the {place}.",
            earlier_sentence=None,
            question=f"Where did {person} leave the {thing}?",
            answers=(f"in the {place}", f"The {place}."),
            thing=thing,
            depth=depth,
        )
    if kind == "gave":
        return _Plot(
            key_sentence=f"{person} gave the {thing} to {other}.",
            earlier_sentence=None,
            question=f"Who gave the {thing} to {other}?",
            answers=(person, f"{person} gave it to {other}."),
            thing=thing,
            depth=depth,
        )
    return _Plot(
        key_sentence=f"{person} took the {thing} from the {former} to the {place}.",
        earlier_sentence=f"{other} put the {thing} in the {former}.",
        question=f"Where was the {thing} at the end?",
        answers=(f"in the {place}", f"The {place}."),
        thing=thing,
        depth=depth,
    )


def _tell(
    rng: random.Random, plot: _Plot, document_tokens: int, tokens_of: Callable[[str], int]
) -> tuple[list[str], int]:
    """The story's sentences and the index of the key sentence."""
    needed = [plot.earlier_sentence] if plot.earlier_sentence else []
    room = document_tokens - sum(tokens_of(text) for text in [*needed, plot.key_sentence])
    filler: list[str] = []
    for sentence in _everyday_life(rng, plot):
        room -= tokens_of(sentence)
        if room < 0:
            break
        filler.append(sentence)
    key_at = round(plot.depth * len(filler))
    earlier_at = rng.randint(0, key_at)
    sentences = [*filler[:earlier_at], *needed, *filler[earlier_at:key_at]]
    return [*sentences, plot.key_sentence, *filler[key_at:]], len(sentences)


def _everyday_life(rng: random.Random, plot: _Plot) -> Iterator[str]:
    """Endless sentences in which people, things and places change, but never the asked thing."""
    things = [thing for thing in _THINGS if thing != plot.thing]
    place_of = {thing: rng.choice(_PLACES) for thing in things}
    while True:
        person, other = rng.sample(_PEOPLE, 2)
        thing = rng.choice(things)
        here, there = place_of[thing], rng.choice(_PLACES)
        happening = rng.randrange(10)
        if happening == 0:
            place_of[thing] = there
            yield f"{person} carried the {thing} from the {here} to the {there}."
        elif happening == 1:
            yield f"{person} found the {thing} in the {here} and showed it to {other}."
        elif happening == 2:
            place_of[thing] = there
            yield f"{person} borrowed the {thing} from {other} and left it in the {there}."
        elif happening == 3:
            yield f"{person} walked to the {there} and met {other} there."
        elif happening == 4:
            yield f"{person} felt {rng.choice(_MOODS)} that {rng.choice(_TIMES)}."
        elif happening == 5:
            yield f"After the {rng.choice(_WEATHER)}, {other} cleaned the {there}."
        elif happening == 6:
            yield f"A {rng.choice(_ANIMALS)} slept near the {there} all {rng.choice(_TIMES)}."
        elif happening == 7:
            yield f"{person} and {other} talked about the {rng.choice(_WEATHER)}."
        elif happening == 8:
            yield f"In the {there}, {person} was waiting for {other}."
        else:
            yield f"{other} asked {person} to look after the {rng.choice(_ANIMALS)}."
