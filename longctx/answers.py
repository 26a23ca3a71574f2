"""What in a model's text is the answer, and whether it is one."""

import re
import string

_PUNCTUATION = string.punctuation + "\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}"
_ABSTENTIONS = {
    "unknown",
    "unanswerable",
    "none",
    "na",
    "not known",
    "not given",
    "not mentioned",
    "not stated",
    "not specified",
    "no answer",
    "i dont know",
    "i do not know",
    "cannot be determined",
    "cannot answer",
}


def is_answer(prediction: str) -> bool:
    """False for an answer that is empty, or an abstention such as "Unknown"."""
    plain = prediction.casefold().translate(str.maketrans("", "", _PUNCTUATION))
    plain = re.sub(r"^(the )?answer is ", "", " ".join(plain.split()))
    return bool(plain) and plain not in _ABSTENTIONS


def free_text(text: str, _sample: object, prompt_is_raw: bool) -> str:
    """The prediction where any text is an answer: after a raw prompt one line, else all of it."""
    return first_line(text) if prompt_is_raw else text.strip()


def first_line(text: str) -> str:
    """The answer in what a model writes after a raw prompt: it writes on, so one line counts.

    The first line that is no lead-in, such as "The answer is:"; empty when there is none.
    """
    lines = (line.strip() for line in text.split("\n"))
    return next((line for line in lines if line and not line.endswith(":")), "")
