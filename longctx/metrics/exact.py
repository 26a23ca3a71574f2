"""Exact match, and HotpotQA's exact match and F1 as its official script defines them.

Source: hotpot_evaluate_v1.py, https://github.com/hotpotqa/hotpot.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_CLOSED_ANSWERS = ("yes", "no", "noanswer")


def letter_score(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[dict[str, float | None]]:
    """em: 1 where the prediction is the reference, letter for letter, else 0."""
    return [
        {"em": float(prediction in mine) if mine else None}
        for prediction, mine in zip(predictions, references, strict=True)
    ]


def hotpot_score(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[dict[str, float | None]]:
    """em and f1 of each prediction, best over its references, from 0 to 1.

    A sample without a reference scores None.
    """
    return [
        {
            "em": max((hotpot_em(prediction, reference) for reference in mine), default=None),
            "f1": max((hotpot_f1(prediction, reference) for reference in mine), default=None),
        }
        for prediction, mine in zip(predictions, references, strict=True)
    ]


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, without a, an, the, single spaces."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def hotpot_em(prediction: str, reference: str) -> float:
    """1 where the two are equal once normalised, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(reference))


def hotpot_f1(prediction: str, reference: str) -> float:
    """F1 of the two bags of words; with yes, no or noanswer on either side all or nothing."""
    predicted, expected = normalize_answer(prediction), normalize_answer(reference)
    if predicted != expected and (predicted in _CLOSED_ANSWERS or expected in _CLOSED_ANSWERS):
        return 0.0
    predicted_words, expected_words = predicted.split(), expected.split()
    common = sum((Counter(predicted_words) & Counter(expected_words)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted_words), common / len(expected_words)
    return 2 * precision * recall / (precision + recall)
