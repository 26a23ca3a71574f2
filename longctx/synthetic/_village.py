"""The village that stories and long documents are set in: its words and its everyday life."""

import random
from collections.abc import Callable, Iterator
from functools import lru_cache

PEOPLE = (
    "Anna", "Boris", "Clara", "Dmitri", "Elena", "Farid", "Greta", "Hugo", "Ines", "Jonas",
    "Karin", "Leo", "Mara", "Nils", "Olga", "Pablo", "Rosa", "Stefan", "Tilda", "Victor",
)  # fmt: skip
THINGS = (
    "brass lamp", "blue umbrella", "old map", "silver flute", "wooden box", "red scarf",
    "glass bottle", "leather book", "copper kettle", "green lantern", "iron key", "paper kite",
    "ivory comb", "stone bowl", "velvet hat", "tin whistle", "clay jug", "wool blanket",
)  # fmt: skip
PLACES = (
    "mill", "garden", "library", "harbour", "kitchen", "tower", "stable", "chapel", "market",
    "cellar", "orchard", "bakery", "lighthouse", "school", "attic", "workshop", "inn", "barn",
)  # fmt: skip
WEATHER = ("rain", "snow", "wind", "fog", "sun", "frost", "thunder", "drizzle")
TIMES = ("morning", "afternoon", "evening", "night", "day", "week")
MOODS = ("tired", "cheerful", "worried", "quiet", "hungry", "curious", "proud", "restless")
ANIMALS = ("dog", "cat", "goat", "crow", "horse", "goose", "fox", "owl")


def sentence_counter(count_tokens: Callable[[str], int]) -> Callable[[str], int]:
    """Tokens of a sentence, the space before it included: they add up to the document's."""
    return lru_cache(maxsize=100_000)(lambda sentence: count_tokens(" " + sentence))


def spread_depths(seed: int, count: int) -> list[float]:
    """Depths from 0 to 1, spread evenly, in an order that goes with nothing else."""
    depths = [(slot + 0.5) / count for slot in range(count)]
    random.Random(f"{seed}/depths").shuffle(depths)
    return depths


def everyday_life(
    rng: random.Random, asked_thing: str | None, room: int, tokens_of: Callable[[str], int]
) -> list[str]:
    """Sentences of at most `room` tokens in all, in which the asked thing never occurs."""
    told: list[str] = []
    for sentence in endless_life(rng, asked_thing):
        room -= tokens_of(sentence)
        if room < 0:
            break
        told.append(sentence)
    return told


def endless_life(rng: random.Random, asked_thing: str | None = None) -> Iterator[str]:
    """Sentences without end, in which the asked thing never occurs."""
    things = [thing for thing in THINGS if thing != asked_thing]
    place_of = {thing: rng.choice(PLACES) for thing in things}
    while True:
        person, other = rng.sample(PEOPLE, 2)
        thing = rng.choice(things)
        here, there = place_of[thing], rng.choice(PLACES)
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
            yield f"{person} felt {rng.choice(MOODS)} that {rng.choice(TIMES)}."
        elif happening == 5:
            yield f"After the {rng.choice(WEATHER)}, {other} cleaned the {there}."
        elif happening == 6:
            yield f"A {rng.choice(ANIMALS)} slept near the {there} all {rng.choice(TIMES)}."
        elif happening == 7:
            yield f"{person} and {other} talked about the {rng.choice(WEATHER)}."
        elif happening == 8:
            yield f"In the {there}, {person} was waiting for {other}."
        else:
            yield f"{other} asked {person} to look after the {rng.choice(ANIMALS)}."
