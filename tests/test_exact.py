"""HotpotQA's EM and F1 against its official definition, on pairs worked out by hand."""

import pytest

from longctx.metrics.exact import (
    answer_score,
    contains,
    hotpot_em,
    hotpot_f1,
    hotpot_score,
    letter_score,
    normalize_answer,
    official_f1_score,
    official_letter_score,
    qa_f1,
)

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


# prediction, reference, contained
HELD = [
    ("54916", "54916", 1),
    ("The pass key is 54916.", "54916", 1),
    ("key=54916", "54916", 1),
    ("pass_key:54916\n", "54916", 1),
    ("54,916", "54916", 1),
    ("5-4-9-1-6", "54916", 1),
    ("It is in the Mill!", "in the mill", 1),
    ("It is the mill.", "The mill.", 1),
    ("Noël Coward", "noe\u0308l", 1),
    ("東京です", "東京", 1),
    ("1549162", "54916", 0),
    ("549162", "54916", 0),
    ("549 16", "54916", 0),
    ("1.54916", "54916", 0),
    ("1,2 x", "2", 0),
    ("54916.Next", "54916", 1),
    ("Key54916", "54916", 0),
    ("", "54916", 0),
    ("the millstone", "mill", 0),
    ("a mill in the", "in the mill", 0),
    ("the", "The", 1),
    ("x", "?", 0),
]


@pytest.mark.parametrize(("prediction", "reference", "held"), HELD)
def test_a_reference_is_contained_as_whole_words(prediction, reference, held):
    assert contains(prediction, reference) == held
    assert hotpot_em(prediction, reference) <= held


def test_longbenchs_f1_knows_no_closed_answers():
    """Unlike HotpotQA's, where yes, no and noanswer match all or nothing."""
    assert qa_f1("yes it is", "Yes") == pytest.approx(0.5)
    assert hotpot_f1("yes it is", "Yes") == 0
    assert qa_f1("the big cat", "A big, big dog") == pytest.approx(2 * 1 / 5)
    assert qa_f1("", "") == qa_f1("a", "the") == 0


def test_answers_have_the_best_of_their_references():
    best, none = answer_score(["The key is 7.", "x"], [["8", "7", "key 7"], ["", " "]])
    assert best == {"contains": 1, "em": 0, "f1": pytest.approx(0.8)}
    assert none == {"contains": None, "em": None, "f1": None}
    (official,) = official_f1_score(["7\n\nQuestion: 8?"], [["7"]])
    assert official == {"f1_official": pytest.approx(2 / 4)}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The correct answer is (B)", "B"),
        ("**The correct answer is (B)**", "B"),
        ("The correct answer is D.", "D"),
        # As the official script has it.
        ("The correct answer is Because", "B"),
        ("The correct answer is A dog. The correct answer is (C).", "C"),
        ("The correct answer is (A) or (B).", "A"),
        ("the correct answer is (A)", ""),
        ("(A)", ""),
        ("Answer: A", ""),
        ("", ""),
    ],
)
def test_the_official_script_reads_letters_in_its_own_way(text, letter):
    right, *wrong = official_letter_score([text] * 2, [[letter or "-"], ["E"]])
    assert right == {"em_official": float(bool(letter))}
    assert wrong == [{"em_official": 0}]
    assert official_letter_score([text], [[]]) == [{"em_official": None}]
