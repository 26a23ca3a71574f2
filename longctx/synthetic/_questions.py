"""Questions about documents: RULER's two tasks of questions and answers, on our own documents."""

import random

from longctx.synthetic._puzzle import Growing, Puzzle, prose, with_needles
from longctx.synthetic._two_hop import Names, Question, bridge, comparison, endless_paragraphs

_EARLIER_BORN = 1  # the comparison whose answer is a name: "yes" and "no" are in many a text


def one_fact(rng: random.Random, _number: int) -> Puzzle:
    """A question that a sentence of one document answers."""
    names = Names(rng)
    author = names.author()
    text, answer, index = rng.choice(
        (
            (f"In which town was {author.name} born?", author.town, 0),
            (f"In which year was {author.name} born?", str(author.year), 0),
            (f"Which instrument does {author.name} play?", author.instrument, 1),
        )
    )
    fact = (author.name, author.sentences(), index)
    return _puzzle(rng, names, Question(text, answer, "", (fact,)))


def two_facts(rng: random.Random, number: int) -> Puzzle:
    """A question that takes two documents, bridge and comparison in turn."""
    names = Names(rng)
    asked = comparison(rng, names, _EARLIER_BORN) if number % 2 else bridge(rng, names)
    return _puzzle(rng, names, asked)


def _puzzle(rng: random.Random, names: Names, asked: Question) -> Puzzle:
    facts = [(title, " ".join(sentences)) for title, sentences, _ in asked.facts]
    rng.shuffle(facts)
    depths = [rng.random() for _ in facts]
    _, words = prose(random.Random(rng.random()))
    told = [f"{title}\n{text}" for title, text in facts]
    others = Growing(
        f"{title}\n{' '.join(sentences)}" for title, sentences in endless_paragraphs(rng, names)
    )

    def context(units: int, padding: int) -> str:
        documents = with_needles(others.first(units), told, depths)
        listed = [f"Document {place}: {text}" for place, text in enumerate(documents, start=1)]
        rest = [" ".join(words.first(padding))] if padding else []
        return (
            "Below are some documents, of which a question will be asked. The answer is a name, a "
            "place, a year or a thing: give it alone.\n\n" + "\n\n".join([*listed, *rest]) + "\n\n"
        )

    return Puzzle(
        context,
        question=f"Answer the question from the documents above. Question: {asked.text}",
        answer_prefix="Answer:",
        answers=[asked.answer.removeprefix("the ")],
        evidence=[sentences[index] for _, sentences, index in asked.facts],
    )
