"""Stories in NarrativeQA's schema.

People carry things between places; every story has one question, whose answer stands at a known
depth: where something is, or a pass key that somebody says.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from longctx.synthetic._village import (
    PEOPLE,
    PLACES,
    THINGS,
    everyday_life,
    sentence_counter,
    spread_depths,
)


@dataclass(frozen=True)
class _Plot:
    """The one fact that is asked for, and the thing that must not be told of elsewhere."""

    key_sentence: str
    question: str
    answers: tuple[str, ...]
    thing: str | None = None
    earlier_sentence: str = ""


def stories(
    seed: int, count: int, document_tokens: int, count_tokens: Callable[[str], int]
) -> list[dict[str, Any]]:
    """`count` records in the schema of `deepmind/narrativeqa`, each with a story of its own.

    document_tokens: a story is as long as whole sentences allow without exceeding it, but it
        always holds its key sentence.
    count_tokens: tokens of a text.
    A record's `question` also holds `answer_depth`, the answer's place in the story from 0 to 1,
    and `evidence`, the sentence that it stands in.
    """
    return _records(_plot, seed, count, document_tokens, count_tokens)


def pass_keys(
    seed: int, count: int, document_tokens: int, count_tokens: Callable[[str], int]
) -> list[dict[str, Any]]:
    """`count` records as those of `stories`, each with five digits that only one sentence says.

    The task of Mohtashami and Jaggi, https://arxiv.org/abs/2305.16300, in a text that does not
    repeat itself: small models can do it, so it tells what was lost on the way.
    """
    return _records(_pass_key, seed, count, document_tokens, count_tokens)


def _records(
    plot_of: Callable[[random.Random], _Plot],
    seed: int,
    count: int,
    document_tokens: int,
    count_tokens: Callable[[str], int],
) -> list[dict[str, Any]]:
    tokens_of = sentence_counter(count_tokens)
    records = []
    for number, depth in enumerate(spread_depths(seed, count)):
        rng = random.Random(f"{seed}/{number}")
        plot = plot_of(rng)
        sentences, key_at = _tell(rng, plot, depth, document_tokens, tokens_of)
        records.append(_record(f"synthetic-{seed}-{number:04d}", plot, sentences, key_at))
    return records


def _record(name: str, plot: _Plot, sentences: list[str], key_at: int) -> dict[str, Any]:
    text = " ".join(sentences)
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
            "evidence": [plot.key_sentence],
        },
        "answers": [{"text": answer, "tokens": answer.split()} for answer in plot.answers],
    }


def _plot(rng: random.Random) -> _Plot:
    person, other = rng.sample(PEOPLE, 2)
    thing = rng.choice(THINGS)
    place, former = rng.sample(PLACES, 2)
    kind = rng.choice(("left", "gave", "moved"))
    if kind == "left":
        return _Plot(
            key_sentence=f"{person} left the {thing} in the {place}.",
            question=f"Where did {person} leave the {thing}?",
            answers=(f"in the {place}", f"The {place}."),
            thing=thing,
        )
    if kind == "gave":
        return _Plot(
            key_sentence=f"{person} gave the {thing} to {other}.",
            question=f"Who gave the {thing} to {other}?",
            answers=(person, f"{person} gave it to {other}."),
            thing=thing,
        )
    return _Plot(
        key_sentence=f"{person} took the {thing} from the {former} to the {place}.",
        earlier_sentence=f"{other} put the {thing} in the {former}.",
        question=f"Where was the {thing} at the end?",
        answers=(f"in the {place}", f"The {place}."),
        thing=thing,
    )


def _pass_key(rng: random.Random) -> _Plot:
    key = str(rng.randrange(10_000, 100_000))
    return _Plot(f"The pass key is {key}.", "What is the pass key?", answers=(key,))


def _tell(
    rng: random.Random,
    plot: _Plot,
    depth: float,
    document_tokens: int,
    tokens_of: Callable[[str], int],
) -> tuple[list[str], int]:
    """The story's sentences and the index of the key sentence."""
    needed = [plot.earlier_sentence] if plot.earlier_sentence else []
    room = document_tokens - sum(tokens_of(text) for text in [*needed, plot.key_sentence])
    filler = everyday_life(rng, plot.thing, room, tokens_of)
    key_at = round(depth * len(filler))
    earlier_at = rng.randint(0, key_at)
    sentences = [*filler[:earlier_at], *needed, *filler[earlier_at:key_at]]
    return [*sentences, plot.key_sentence, *filler[key_at:]], len(sentences)
