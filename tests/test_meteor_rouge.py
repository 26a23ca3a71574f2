# ruff: noqa: RUF001 - other scripts have letters that look like Latin ones
import sys
import unicodedata

import nltk
import pytest
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

from longctx import wordnet
from longctx.metrics import meteor_rouge, words


def test_scores_are_the_best_over_the_references():
    (score,) = meteor_rouge.score(["the cat sat"], [["a dog", "the cat sat down"]])
    rouge = RougeScorer(["rouge1", "rougeL"]).score("the cat sat down", "the cat sat")
    assert score["rouge1"] == pytest.approx(rouge["rouge1"].fmeasure)
    assert score["rougeL"] == pytest.approx(rouge["rougeL"].fmeasure)
    expected = meteor_score([["the", "cat", "sat", "down"]], ["the", "cat", "sat"])
    assert score["meteor"] == pytest.approx(expected)


def test_meteor_knows_synonyms_and_stems():
    """Without WordNet these words would not match: it is the real METEOR."""
    synonym, stem, other = meteor_rouge.score(
        ["big auto", "big cats", "big zebra"], [["big car"], ["big cat"], ["big car"]]
    )
    assert synonym["meteor"] > 0.9
    assert stem["meteor"] > 0.9
    assert other["meteor"] < 0.5


def test_empty_and_unicode_answers():
    empty, no_reference, accents = meteor_rouge.score(
        ["", "x", "Café 日本"], [["something"], ["", "  "], ["café 日本"]]
    )
    assert empty == {"meteor": 0.0, "rouge1": 0.0, "rougeL": 0.0}
    assert no_reference == dict.fromkeys(meteor_rouge.SCORE_NAMES)
    assert accents["meteor"] > 0.9
    assert meteor_rouge.score([], []) == []


def test_punctuation_is_no_match_and_no_word():
    assert words.meteor_words("He left. She didn't… “e.g.” (5%)!") == [
        "he", "left", "she", "did", "n't", "e.g", "5",
    ]  # fmt: skip
    dotted, plain = meteor_rouge.score(["a doctor.", "a doctor"], [["a thief."], ["a thief"]])
    assert dotted == plain
    right, nothing = meteor_rouge.score(["Paris", "."], [["Paris."], ["Paris."]])
    assert right == {"meteor": 0.5, "rouge1": 1, "rougeL": 1}
    assert nothing["meteor"] == 0


def test_rouge_does_not_stem():
    (score,) = meteor_rouge.score(["running dogs"], [["run dog"]])
    assert score["rouge1"] == score["rougeL"] == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Москва", ["москва"]),
        ("東京タワー。", ["東", "京", "タ", "ワ", "ー"]),
        ("東京tokyo2020", ["東", "京", "tokyo2020"]),
        ("서울 특별시", ["서울", "특별시"]),
        (unicodedata.normalize("NFD", "서울"), ["서울"]),
        ("दिल्ली, हिन्दी।", ["दिल्ली", "हिन्दी"]),
        ("ثَعْلَب؟", ["ثَعْلَب"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("กรุง", ["ก", "รุ", "ง"]),
        ("ΟΔΟΣ", ["οδοσ"]),
        ("É", ["é"]),
    ],
)
def test_words_of_any_script(text, expected):
    assert words.rouge_words(text) == expected
    (score,) = meteor_rouge.score([text], [[text]])
    assert score["rouge1"] == score["rougeL"] == 1
    assert score["meteor"] >= 0.5


@pytest.mark.parametrize(
    "text",
    [
        "Café Noël isn't naïve: à la carte", "U.S.A. 1,000 (50%)", "well-known _x_", "Łódź e\u0301",
        "ﬁne “quoted” text\t\n", "Straße 12a", "",
        "5 \u212a in \u0130zmir",
    ],
)  # fmt: skip
def test_rouge_of_latin_letters_is_rouge_scores(text):
    assert words.rouge_words(text) == tokenize(text, None)


def test_without_wordnet_an_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(wordnet, "reader", wordnet.reader.__wrapped__)
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(wordnet.WordNetMissingError, match=r"python -m longctx\.wordnet"):
        wordnet.check()


def test_a_missing_package_is_named_with_the_way_out(monkeypatch):
    package = "rouge_score.rouge_scorer"
    meteor_rouge._rouge_scorer.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"need the package {package}: pip install -r req"):
        meteor_rouge.check()
