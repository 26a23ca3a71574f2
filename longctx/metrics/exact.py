"""Exact match and F1 as the official scripts define them, and whether a reference is contained.

Sources: hotpot_evaluate_v1.py, https://github.com/hotpotqa/hotpot; LongBench/metrics.py and
pred.py, https://github.com/THUDM/LongBench; scripts/eval/synthetic/constants.py,
https://github.com/NVIDIA/RULER.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from longctx.metrics.words import whole_words
from longctx.multiple_choice import official_letter_of

Texts = Sequence[str]
References = Sequence[Sequence[str]]  # those of each text
Scores = list[dict[str, float | None]]  # by name, of each text

_CLOSED_ANSWERS = ("yes", "no", "noanswer")


def letter_score(predictions: Texts, references: References) -> Scores:
    """em: 1 where the prediction is the reference, letter for letter, else 0."""
    return [
        {"em": float(prediction in mine) if mine else None}
        for prediction, mine in zip(predictions, references, strict=True)
    ]


def official_letter_score(texts: Texts, references: References) -> Scores:
    """em_official: `letter_score` of the letters that LongBench-v2's own script reads in texts."""
    letters = [official_letter_of(text) for text in texts]
    return [{"em_official": score["em"]} for score in letter_score(letters, references)]


def official_f1_score(texts: Texts, references: References) -> Scores:
    """f1_official: LongBench's F1 of whole texts, best over the references."""
    scores = answer_score(texts, references)
    return [{"f1_official": score["f1"]} for score in scores]


def hotpot_score(predictions: Texts, references: References) -> Scores:
    """em and f1 of each prediction, best over its references, from 0 to 1.

    A sample without a reference scores None.
    """
    return _best(predictions, references, em=hotpot_em, f1=hotpot_f1)


def _best(
    predictions: Texts, references: References, **scores: Callable[[str, str], float]
) -> Scores:
    """Each score of each prediction, best over its references; None without a reference."""
    return [
        {
            name: max((score(prediction, reference) for reference in mine), default=None)
            for name, score in scores.items()
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
    return _bag_f1(predicted.split(), expected.split())


def _bag_f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    common = sum((Counter(predicted) & Counter(expected)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def answer_score(predictions: Texts, references: References) -> Scores:
    """contains, em and f1 of each prediction, best over its references, from 0 to 1.

    em is HotpotQA's, f1 LongBench's. A sample without a reference that says anything scores None.
    """
    references = [[reference for reference in mine if reference.strip()] for mine in references]
    return _best(predictions, references, contains=contains, em=hotpot_em, f1=qa_f1)


def contains(prediction: str, reference: str) -> float:
    """1 where the reference stands in the prediction as whole words, else 0.

    Punctuation is nothing, as in `hotpot_em`, or ends a word: "54,916." and "key=54916" hold the
    key 54916; "1549162" does not.
    """
    expected = normalize_answer(reference)
    if not expected:
        return hotpot_em(prediction, reference)
    if f" {expected} " in f" {normalize_answer(prediction)} ":
        return 1.0
    words, wanted = whole_words(prediction), whole_words(reference)
    starts = range(len(words) - len(wanted) + 1) if wanted else ()
    return float(any(words[start : start + len(wanted)] == wanted for start in starts))


def qa_f1(prediction: str, reference: str) -> float:
    """F1 of the two bags of words once normalised: `qa_f1_score` of LongBench's metrics.py."""
    return _bag_f1(normalize_answer(prediction).split(), normalize_answer(reference).split())


def string_match_all(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[dict[str, float | None]]:
    """string_match: the share of the references that occur in the prediction, in any letter case.

    RULER's score of all tasks but questions. A sample without a reference scores None.
    """
    return [
        {"string_match": sum(found) / len(found) if found else None}
        for found in _occurring(predictions, references)
    ]


def string_match_part(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[dict[str, float | None]]:
    """string_match: 1 where any of the references occurs in the prediction, RULER's for questions.

    A sample without a reference scores None.
    """
    return [
        {"string_match": float(any(found)) if found else None}
        for found in _occurring(predictions, references)
    ]


def _occurring(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[bool]]:
    return [
        [reference.lower() in prediction.lower() for reference in mine]
        for prediction, mine in zip(predictions, references, strict=True)
    ]
