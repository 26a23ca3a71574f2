"""Two-hop questions over many short encyclopedia paragraphs, in HotpotQA's schema.

Every paragraph is about a work or about its author. A bridge question names a work and asks for a
fact about its author, so that the work's paragraph leads to the author's; a comparison question
sets two authors side by side. Every other work and author is told of in the same words, so that
the question alone says nothing of the answer.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from longctx.synthetic._village import PEOPLE, PLACES, THINGS, spread_depths

_SURNAMES = (
    "Abel", "Brandt", "Castell", "Dorn", "Eklund", "Ferro", "Gallo", "Holm", "Ivarsen", "Jansky",
    "Keller", "Lind", "Moreau", "Novak", "Orsini", "Petrov", "Quist", "Rossi", "Sandoval", "Tamm",
)  # fmt: skip
_INITIALS = "ABCDEFGHIJKLMNOPRSTVW"
_TOWNS = tuple(
    head + tail
    for head in ("Ash", "Birch", "Clay", "Deer", "Elm", "Fox", "Glen", "Hazel", "Iron", "Lake")
    for tail in ("bridge", "field", "ford", "haven", "mouth", "stead", "ton", "wick")
)
_INSTRUMENTS = (
    "accordion", "banjo", "bassoon", "cello", "clarinet", "dulcimer", "flute", "guitar", "harp",
    "mandolin", "oboe", "organ", "trombone", "trumpet", "viola", "zither",
)  # fmt: skip
_KINDS = {"film": "directed", "novel": "written", "song": "composed", "play": "staged"}
_REMARKS = (
    "The weather of that year was much talked about.",
    "Few letters from this time have survived.",
    "A local newspaper printed a long article about it.",
    "Later editions of the town guide mention it briefly.",
    "Several students have studied the matter since.",
    "An exhibition in the library was devoted to it.",
    "The archive keeps two photographs of the day.",
    "Critics did not agree about what it meant.",
)

Passage = Callable[[int, str, list[str]], str]


@dataclass(frozen=True)
class _Author:
    name: str
    town: str
    instrument: str
    year: int

    def sentences(self) -> list[str]:
        return [
            f"{self.name} was born in {self.town} in {self.year}.",
            f"{self.name} plays the {self.instrument}.",
        ]


@dataclass(frozen=True)
class Question:
    """A question about paragraphs.

    facts: (title, its sentences, index of the one that the answer rests on).
    """

    text: str
    answer: str
    type: str
    facts: tuple[tuple[str, list[str], int], ...]


def two_hop(
    seed: int,
    count: int,
    document_tokens: int,
    count_tokens: Callable[[str], int],
    *,
    passage: Passage,
) -> list[dict[str, Any]]:
    """`count` records in the schema of `hotpotqa/hotpot_qa`, bridge and comparison in turn.

    document_tokens: the passages are as long as whole sentences allow without exceeding it, but
        the two that the answer rests on are always there.
    count_tokens: tokens of a text.
    passage: (number, title, sentences) -> the text as which a paragraph stands in the document.
    """
    first_depths, second_depths = spread_depths(seed, count), spread_depths(seed + 1, count)
    records = []
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        names = Names(rng)
        question = bridge(rng, names) if number % 2 == 0 else comparison(rng, names, number)
        facts = list(question.facts)
        rng.shuffle(facts)
        paragraphs = [(title, sentences) for title, sentences, _ in facts]
        depths = sorted((first_depths[number], second_depths[number]))

        def tokens_of(place: int, title: str, sentences: list[str]) -> int:
            return count_tokens(passage(place, title, _spaced(sentences)))

        room = document_tokens - sum(
            tokens_of(place, *paragraph) for place, paragraph in enumerate(paragraphs, 1)
        )
        others = list(_others(rng, names, room, tokens_of))
        for place, paragraph in enumerate(paragraphs):
            others.insert(round(depths[place] * len(others)), paragraph)
        records.append(
            {
                "id": f"synthetic-{seed}-{number:04d}",
                "question": question.text,
                "answer": question.answer,
                "type": question.type,
                "level": "hard",
                "supporting_facts": {
                    "title": [title for title, _, _ in question.facts],
                    "sent_id": [index for _, _, index in question.facts],
                },
                "context": {
                    "title": [title for title, _ in others],
                    "sentences": [_spaced(sentences) for _, sentences in others],
                },
            }
        )
    return records


def _spaced(sentences: list[str]) -> list[str]:
    """As HotpotQA has them: joined without anything between, they are the paragraph."""
    return [sentences[0], *(f" {sentence}" for sentence in sentences[1:])]


class Names:
    """Names of which none is given twice in a record."""

    def __init__(self, rng: random.Random):
        self._rng = rng
        self._given: set[str] = set()

    def _new(self, draw: Callable[[], str]) -> str:
        while (name := draw()) in self._given:
            pass
        self._given.add(name)
        return name

    def author(self) -> _Author:
        """Somebody whose name nobody has yet."""
        rng = self._rng
        name = self._new(
            lambda: f"{rng.choice(PEOPLE)} {rng.choice(_INITIALS)}. {rng.choice(_SURNAMES)}"
        )
        return _Author(name, rng.choice(_TOWNS), rng.choice(_INSTRUMENTS), rng.randint(1850, 1990))

    def work(self) -> str:
        """A title that no other work has."""
        rng = self._rng
        return self._new(
            lambda: (
                f"The {rng.choice(THINGS).title()} of {rng.choice(_TOWNS)} "
                f"{rng.choice(PLACES).title()}"
            )
        )


def _work_sentences(kind: str, title: str, author: _Author) -> list[str]:
    return [f'"{title}" is a {kind}.', f"It was {_KINDS[kind]} by {author.name}."]


def bridge(rng: random.Random, names: Names) -> Question:
    """A question about the author of a work that is named."""
    kind, title, author = rng.choice(tuple(_KINDS)), names.work(), names.author()
    who = f'the person by whom the {kind} "{title}" was {_KINDS[kind]}'
    text, answer, index = rng.choice(
        (
            (f"In which town was {who} born?", author.town, 0),
            (f"In which year was {who} born?", str(author.year), 0),
            (f"Which instrument does {who} play?", f"the {author.instrument}", 1),
        )
    )
    facts = (
        (title, _work_sentences(kind, title, author), 1),
        (author.name, author.sentences(), index),
    )
    return Question(text, answer, "bridge", facts)


def comparison(rng: random.Random, names: Names, number: int) -> Question:
    """A question about two authors; `number` decides whether it is answered by a name."""
    one, other = names.author(), names.author()
    # Every second one is answered by yes or no, as often by the one as by the other.
    if number % 4 == 1:
        while one.year == other.year:
            other = names.author()
        text = f"Who was born earlier, {one.name} or {other.name}?"
        answer = min(one, other, key=lambda author: author.year).name
    else:
        same = number % 8 == 3
        while (one.town == other.town) is not same:
            other = names.author()
        text = f"Were {one.name} and {other.name} born in the same town?"
        answer = "yes" if same else "no"
    facts = tuple((author.name, author.sentences(), 0) for author in (one, other))
    return Question(text, answer, "comparison", (facts[0], facts[1]))


def endless_paragraphs(rng: random.Random, names: Names) -> Iterator[tuple[str, list[str]]]:
    """Title and sentences of works and their authors, in turn."""
    while True:
        kind, title, author = rng.choice(tuple(_KINDS)), names.work(), names.author()
        for heading, sentences in (
            (title, _work_sentences(kind, title, author)),
            (author.name, author.sentences()),
        ):
            yield heading, [*sentences, *rng.sample(_REMARKS, rng.randint(0, 2))]


def _others(
    rng: random.Random, names: Names, room: int, tokens_of: Callable[[int, str, list[str]], int]
) -> Iterator[tuple[str, list[str]]]:
    """Paragraphs of other works and authors, as many as `room` tokens hold."""
    for place, (heading, told) in enumerate(endless_paragraphs(rng, names), start=3):
        while told and tokens_of(place, heading, told) > room:
            told.pop()
        if not told:
            return
        room -= tokens_of(place, heading, told)
        yield heading, told
