"""METEOR and ROUGE, per sample."""

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from longctx import wordnet
from longctx.metrics.exact import References, Scores, Texts
from longctx.metrics.words import meteor_words, rouge_words

SCORE_NAMES = ("meteor", "rouge1", "rougeL")


def check() -> None:
    """Raises RuntimeError or ImportError, with the way out, when a score could not be computed."""
    wordnet.check()
    try:
        _rouge_scorer()
    except ImportError as error:
        raise ImportError(
            f"METEOR and ROUGE need the package {error.name}: pip install -r requirements.txt"
        ) from None


def score(predictions: Texts, references: References) -> Scores:
    """meteor, rouge1 and rougeL of each prediction, best over its references, from 0 to 1.

    METEOR: Banerjee and Lavie 2005 with stems and WordNet synonyms, NLTK's implementation and
    parameters, punctuation left out. ROUGE: F-measure of Lin 2004, rouge_score's implementation,
    without stemming, in any script. `longctx.metrics.words` says what a word is.
    A sample without a reference scores None.
    """
    usable = [[reference for reference in mine if reference.strip()] for mine in references]
    return [
        _scores(prediction, mine) if mine else dict.fromkeys(SCORE_NAMES)
        for prediction, mine in zip(predictions, usable, strict=True)
    ]


def _scores(prediction: str, references: Sequence[str]) -> dict[str, float | None]:
    from nltk.translate.meteor_score import meteor_score

    mine, others = meteor_words(prediction), [meteor_words(text) for text in references]
    rouge = _rouge_scorer().score_multi(references, prediction)
    return {
        "meteor": float(meteor_score(others, mine, stemmer=_Stemmer(), wordnet=wordnet.reader())),
        **{name: float(result.fmeasure) for name, result in rouge.items()},
    }


class _Stemmer:
    """NLTK's Porter stemmer, each word once."""

    @staticmethod
    @lru_cache(65_536)
    def stem(word: str) -> str:
        """The word's stem."""
        return _porter().stem(word)


@cache
def _porter() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    class AnyScript:
        """What RougeScorer takes for a tokenizer."""

        def tokenize(self, text: str) -> list[str]:
            """Words of a text."""
            return rouge_words(text)

    return RougeScorer(["rouge1", "rougeL"], tokenizer=AnyScript())
