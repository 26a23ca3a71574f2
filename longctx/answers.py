"""What in a model's text is the answer, and whether it is one."""

from longctx import thinking
from longctx.abstentions import is_abstention
from longctx.metrics.words import is_punctuation


def is_answer(prediction: str) -> bool:
    """False for an answer that is empty, or an abstention such as "Unknown"."""
    is_empty = all(letter.isspace() or is_punctuation(letter) for letter in prediction)
    return not is_empty and not is_abstention(prediction)


def free_text(text: str, _sample: object, prompt_is_raw: bool) -> str:
    """The prediction where any text is an answer: after a raw prompt one line, else all of it.

    What the model thought before is no part of it.
    """
    text = thinking.answer(text)
    return first_line(text) if prompt_is_raw else text.strip()


def first_line(text: str) -> str:
    """The answer in what a model writes after a raw prompt: it writes on, so one line counts.

    The first line that is no lead-in, such as "The answer is:"; empty when there is none.
    """
    lines = (line.strip() for line in text.split("\n"))
    return next((line for line in lines if line and not line.endswith(":")), "")
