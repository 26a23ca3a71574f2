"""HotpotQA's EM and F1 against its official definition, on pairs worked out by hand."""

import pytest

from longctx.metrics.exact import hotpot_score, letter_score, normalize_answer

# prediction, reference, em, (words in common, words predicted, words expected)
PAIRS = [
    ("Oklahoma Sooners", "Oklahoma Sooners", 1, (2, 2, 2)),
    ("oklahoma sooners", "Oklahoma Sooners", 1, (2, 2, 2)),
    ("the Oklahoma Sooners.", "Oklahoma Sooners", 1, (2, 2, 2)),
    ("Sooners", "Oklahoma Sooners", 0, (1, 1, 2)),
    ("The Oklahoma Sooners team", "Oklahoma Sooners", 0, (2, 3, 2)),
    ("A cat", "cat", 1, (1, 1, 1)),
    ("an apple a day", "apple day", 1, (2, 2, 2)),
    ("theatre", "the atre", 0, (0, 1, 1)),
    ("Anna", "a nna", 0, (0, 1, 1)),
    ("U.S.A.", "USA", 1, (1, 1, 1)),
    ("well-known", "wellknown", 1, (1, 1, 1)),
    ("well known", "well-known", 0, (0, 2, 1)),
    ('"Now and Then" (1995)', "Now and Then 1995", 1, (4, 4, 4)),
    ("from 1986 to 2013", "1986 to 2013", 0, (3, 4, 3)),
    ("  new \t york\n city ", "New York City", 1, (3, 3, 3)),
    ("New York", "New York City", 0, (2, 2, 3)),
    ("York New", "New York", 0, (2, 2, 2)),
    ("New New York", "New York", 0, (2, 3, 2)),
    ("dog dog", "dog dog cat", 0, (2, 2, 3)),
    ("yes", "Yes.", 1, (1, 1, 1)),
    ("no", "no", 1, (1, 1, 1)),
    ("yes", "no", 0, (0, 1, 1)),
    ("yes it is", "yes", 0, (0, 3, 1)),
    ("no", "no one", 0, (0, 1, 2)),
    ("The yes", "yes", 1, (1, 1, 1)),
    ("noanswer", "noanswer", 1, (1, 1, 1)),
    ("noanswer", "noanswer given", 0, (0, 1, 2)),
    ("no answer", "noanswer", 0, (0, 2, 1)),
    ("yesterday", "yes", 0, (0, 1, 1)),
    ("", "Paris", 0, (0, 0, 1)),
    ("the", "Paris", 0, (0, 0, 1)),
    ("Paris, France", "paris", 0, (1, 2, 1)),
    ("Charles Eugène", "Charles Eugene", 0, (1, 2, 2)),
    ("日本", "日本。", 0, (0, 1, 1)),
    ("Straße", "straße", 1, (1, 1, 1)),
    ("the Cold War (1947–91)", "Cold War (1947–91)", 1, (3, 3, 3)),  # noqa: RUF001
]


@pytest.mark.parametrize(("prediction", "reference", "em", "counts"), PAIRS)
def test_hotpot_em_and_f1(prediction, reference, em, counts):
    common, predicted, expected = counts
    (score,) = hotpot_score([prediction], [[reference]])
    assert score["em"] == em
    # F1 of precision common/predicted and recall common/expected.
    assert score["f1"] == pytest.approx(2 * common / (predicted + expected))


def test_normalisation_removes_articles_after_punctuation():
    assert normalize_answer("A-the An.a; THE 'end'") == "athe ana end"


def test_the_best_reference_counts_and_none_is_no_score():
    best, none = hotpot_score(["big cat", "x"], [["dog", "big cats", "a big cat"], []])
    assert best == {"em": 1.0, "f1": 1.0}
    assert none == {"em": None, "f1": None}
    assert letter_score(["A", "", "B"], [["A"], ["B"], []]) == [{"em": 1}, {"em": 0}, {"em": None}]
