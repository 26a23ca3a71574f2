import sys

import nltk
import pytest
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer

from longctx import wordnet
from longctx.answers import is_answer
from longctx.metrics import overlap


def test_scores_are_the_best_over_the_references():
    (score,) = overlap.score(["the cat sat"], [["a dog", "the cat sat down"]])
    rouge = RougeScorer(["rouge1", "rougeL"]).score("the cat sat down", "the cat sat")
    assert score["rouge1"] == pytest.approx(rouge["rouge1"].fmeasure)
    assert score["rougeL"] == pytest.approx(rouge["rougeL"].fmeasure)
    expected = meteor_score([["the", "cat", "sat", "down"]], ["the", "cat", "sat"])
    assert score["meteor"] == pytest.approx(expected)


def test_meteor_knows_synonyms_and_stems():
    """Without WordNet these words would not match: it is the real METEOR."""
    synonym, stem, other = overlap.score(
        ["big auto", "big cats", "big zebra"], [["big car"], ["big cat"], ["big car"]]
    )
    assert synonym["meteor"] > 0.9
    assert stem["meteor"] > 0.9
    assert other["meteor"] < 0.5


def test_empty_and_unicode_answers():
    empty, no_reference, accents = overlap.score(
        ["", "x", "Café 日本"], [["something"], ["", "  "], ["café 日本"]]
    )
    assert empty == {"meteor": 0.0, "rouge1": 0.0, "rougeL": 0.0}
    assert no_reference == dict.fromkeys(overlap.SCORE_NAMES)
    assert accents["meteor"] > 0.9
    assert overlap.score([], []) == []


def test_a_full_stop_is_a_word_of_its_own_anywhere():
    assert overlap.words("He left. She didn't.") == [
        "he", "left", ".", "she", "did", "n't", ".",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "answered"),
    [
        ("Paris", True),
        ("no", True),
        ("", False),
        (" \n", False),
        (".", False),
        ("Unknown.", False),
        ("UNKNOWN", False),
        ("I don't know", False),
        ("I don’t know.", False),  # noqa: RUF001
        ("The answer is unknown.", False),
        ("N/A", False),
        ("Unknown to her, the dog", True),
        ("日本", True),
    ],
)
def test_answered(text, answered):
    assert is_answer(text) is answered


def test_without_wordnet_an_error_says_how_to_get_it(monkeypatch):
    from nltk.corpus.reader import wordnet as reader
    from nltk.corpus.util import LazyCorpusLoader

    missing = LazyCorpusLoader("wordnet", reader.WordNetCorpusReader, None)
    monkeypatch.setattr(nltk.corpus, "wordnet", missing)
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(wordnet.WordNetMissingError, match=r"python -m longctx\.wordnet"):
        wordnet.check()


@pytest.mark.parametrize("package", ["evaluate", "rouge_score.rouge_scorer"])
def test_a_missing_package_is_named_with_the_way_out(monkeypatch, package):
    overlap._metric.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"need the package {package}: pip install -r req"):
        overlap.check()
