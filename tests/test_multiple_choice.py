"""The letter in outputs such as models write; an empty one where no choice can be read."""

import pytest

from longctx.multiple_choice import letter_of

CHOICES = {
    "A": "The treaty was never signed.",
    "B": "It was signed in 1956 by both parties.",
    "C": "Only France signed it",
    "D": "It was signed, but not ratified",
}
ANIMALS = {"A": "A cat", "B": "A dog", "C": "D. H. Lawrence's goat", "D": "A dog and a cat"}

OUTPUTS = [
    # The benchmark's own form.
    ("The correct answer is (A)", "A"),
    ("The correct answer is (B).", "B"),
    ('"The correct answer is (C)."', "C"),
    ("**The correct answer is (D)**", "D"),
    ("The correct answer is **(B)** It was signed in 1956.", "B"),
    ("The text says so. The correct answer is (C) because only France did.", "C"),
    ("The correct answer is (B), not (A).", "B"),
    ("The correct answer is (A). Not (B).", "A"),
    ("The answer is B. Not C.", "B"),
    ("The answer is B, not C.", "B"),
    ("The correct answer is (A) and not (C).", "A"),
    ("The correct answer is D", "D"),
    ("The correct answer is C: Only France signed it", "C"),
    ("The correct answer is (A)\n\nExplanation: (B) is wrong, the answer is not (C).", "A"),
    ("The correct answer is \N{FULLWIDTH LEFT PARENTHESIS}B\N{FULLWIDTH RIGHT PARENTHESIS}", "B"),
    ("I think it's C.", "C"),
    ("It is B", "B"),
    ("It is a dog.", ""),
    ("I choose b.", "B"),
    ("option (d)", "D"),
    ("Choice: A", "A"),
    # Letters alone, with and without decoration.
    ("A", "A"),
    (" b ", "B"),
    ("(a)", "A"),
    ("**C**", "C"),
    ("D.", "D"),
    ("[B]", "B"),
    ('"C"', "C"),
    ("`D`", "D"),
    ("(B)\n", "B"),
    ("A)", "A"),
    ("\N{FULLWIDTH LATIN CAPITAL LETTER C}", "C"),
    # A letter, then words.
    ("A. The treaty was never signed.", "A"),
    ("B) It was signed in 1956 by both parties.", "B"),
    ("(c) only France signed it", "C"),
    ("D: it was signed, but not ratified", "D"),
    ("d. It was signed", "D"),
    ("C \N{EN DASH} only France", "C"),
    ("B\n\nThe second chapter says so.", "B"),
    ("B, because both parties signed.", "B"),
    ("A because it never was", "A"),
    ("(B). Unlike (A), it agrees with the text.", "B"),
    # Other forms of statement.
    ("Answer: B.", "B"),
    ("answer: (d)", "D"),
    ("Answer: **C**", "C"),
    ("**Answer:** C", "C"),
    ("Final Answer: A", "A"),
    ("The answer is (B).", "B"),
    ("The answer is B because both signed.", "B"),
    ("The answer would be C, since only France signed.", "C"),
    ("The correct option is D.", "D"),
    ("the best answer is: b", "B"),
    ("I would choose option C.", "C"),
    ("I'd go with (D)", "D"),
    ("Option B is correct.", "B"),
    ("(C) is the correct answer.", "C"),
    ("Therefore, B is the right choice.", "B"),
    ("$\\boxed{C}$", "C"),
    ("\\boxed{\\text{A}}", "A"),
    ('{"answer": "B"}', "B"),
    ("<answer>D</answer>", "D"),
    ("\u7b54\u6848\uff1aB", "B"),
    ("The answer is not A. The answer is B.", "B"),
    ("(A) is wrong. The answer is (C).", "C"),
    ("Based on the text, (B) fits best.", "B"),
    ("It cannot be known for sure, but option C.", "C"),
    # The choice in words.
    ("The treaty was never signed.", "A"),
    ("only France signed it", "C"),
    ("The correct answer is: It was signed, but not ratified.", "D"),
    ("The text says that it was signed in 1956 by both parties, after the war.", "B"),
    # The list once more, then an answer.
    ("(A) The treaty\n(B) It was\n(C) Only\n(D) It was\n\nThe answer is (B).", "B"),
    # No answer, or more than one.
    ("", ""),
    ("   \n", ""),
    ("Because the treaty was signed.", ""),
    ("A dog", ""),
    ("a dog", ""),
    ("A dog is not mentioned.", ""),
    ("Both parties agreed.", ""),
    ("Certainly! Let me think.", ""),
    ("Dogs", ""),
    ("E", ""),
    ("AB", ""),
    ("A, B", ""),
    ("A and C", ""),
    ("B/D", ""),
    ("The correct answer is (A) or (B).", ""),
    ("The correct answer is (insert answer here).", ""),
    ("The correct answer is Because", ""),
    ("The correct answer is A dog", ""),
    ("The correct answer is (E)", ""),
    ("The answer is B. No, the answer is C.", ""),
    ("Both (A) and (C) are right.", ""),
    ("(A) is wrong.", ""),
    ("It is not (A).", ""),
    ("Option C is incorrect.", ""),
    ("(D) cannot be right.", ""),
    ("I wouldn't choose B", ""),
    ("None of the above", ""),
    ("Unknown", ""),
    ("I do not know the answer.", ""),
    ("The answer isn\N{RIGHT SINGLE QUOTATION MARK}t (A).", ""),
    ("\N{LEFT DOUBLE QUOTATION MARK}B\N{RIGHT DOUBLE QUOTATION MARK}", "B"),
    ("The answer is in chapter C of the book", ""),
    ("Vitamin B is good for you", ""),
    ("Plan B is the best plan", ""),
    ("A.I. systems", ""),
    ("D-Day was in 1944", ""),
    ("A's treaty", ""),
    ("(A) The treaty was\n(B) It was\n(C) Only\n(D) It", ""),
    ("B. Only France signed it", ""),
    ("\U0001f600", ""),
    ("\u65e5\u672c", ""),
]


@pytest.mark.parametrize(("text", "letter"), OUTPUTS)
def test_letters(text, letter):
    assert letter_of(text, CHOICES, prompt_is_raw=False) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A dog", "B"),
        ("a dog.", "B"),
        ("The correct answer is A dog", "B"),
        ("D. H. Lawrence's goat", "C"),
        ("A dog and a cat", "D"),
        ("It says that it was a dog and a cat.", "D"),
        ("A. A cat", "A"),
        ("A. A dog", ""),
        ("A dog\nIt barks", "B"),
        ("dog", ""),
    ],
)
def test_choices_in_words(text, letter):
    assert letter_of(text, ANIMALS, prompt_is_raw=False) == letter


def test_a_choice_of_three_words_or_more_is_found_in_a_sentence():
    choices = {"A": "big red dogs", "B": "big red dogs and cats", "C": "red dogs", "D": "x y"}
    assert letter_of("It was said that big red dogs bark.", choices, False) == "A"
    assert letter_of("It was said that big red dogs and cats sleep.", choices, False) == "B"
    assert letter_of("It was said that old red dogs bark.", choices, False) == ""


def test_choices_of_equal_words_are_not_told_apart():
    same = dict.fromkeys("ABCD", "all of these")
    assert letter_of("All of these", same, prompt_is_raw=False) == ""
    assert letter_of("(B) All of these", same, prompt_is_raw=False) == ""


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (" The correct answer is (B)\n\nThe correct answer is (C)", "B"),
        ("\n\nThe correct answer is:\n(D)\nA. something", "D"),
        ("\n(B)\n\nWhat is the correct answer to this question: x\nChoices:\n(A) y\n(C) z", "B"),
        ("\nChoices:\n(A) The treaty", ""),
        (" (A) The treaty was never\n(B) It was", ""),
        ("\n\nFormat your response as follows: \"The correct answer is (A)\".", ""),
        ("I think so.\nThe correct answer is (C)", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_after_a_raw_prompt_only_the_answer_itself_counts(text, letter):
    assert letter_of(text, CHOICES, prompt_is_raw=True) == letter
