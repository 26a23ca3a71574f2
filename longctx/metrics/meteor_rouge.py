"""METEOR and ROUGE, per sample, through `evaluate` and without a download."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from longctx import wordnet
from longctx.metrics.words import meteor_words, rouge_words

if TYPE_CHECKING:
    import evaluate

SCORE_NAMES = ("meteor", "rouge1", "rougeL")


def check() -> None:
    """Raises RuntimeError or ImportError, with the way out, when a score could not be computed."""
    wordnet.check()
    try:
        _metric()
    except ImportError as error:
        raise ImportError(
            f"METEOR and ROUGE need the package {error.name}: pip install -r requirements.txt"
        ) from None


def score(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[dict[str, float | None]]:
    """meteor, rouge1 and rougeL of each prediction, best over its references, from 0 to 1.

    METEOR: Banerjee and Lavie 2005 with stems and WordNet synonyms, NLTK's implementation and
    parameters, punctuation left out. ROUGE: F-measure of Lin 2004, rouge_score's implementation,
    without stemming, in any script. `longctx.metrics.words` says what a word is.
    A sample without a reference scores None.
    """
    usable = [[reference for reference in mine if reference.strip()] for mine in references]
    rows = [row for row, mine in enumerate(usable) if mine]
    scores: list[dict[str, float | None]] = [dict.fromkeys(SCORE_NAMES) for _ in predictions]
    if rows:
        computed = _metric().compute(
            predictions=[predictions[row] for row in rows],
            references=[usable[row] for row in rows],
        )
        for name in SCORE_NAMES:
            for row, value in zip(rows, computed[name], strict=True):
                scores[row][name] = float(value)
    return scores


@cache
def _metric() -> "evaluate.Metric":
    """An `evaluate` metric defined here, so that nothing is fetched."""
    import datasets
    import evaluate
    from nltk.translate.meteor_score import meteor_score
    from rouge_score.rouge_scorer import RougeScorer

    class AnyScript:
        """What RougeScorer takes for a tokenizer."""

        def tokenize(self, text: str) -> list[str]:
            """Words of a text."""
            return rouge_words(text)

    rouge = RougeScorer(["rouge1", "rougeL"], tokenizer=AnyScript())

    class AnswerOverlap(evaluate.Metric):
        """METEOR and ROUGE of each prediction, best over its references."""

        def _info(self) -> "evaluate.MetricInfo":
            return evaluate.MetricInfo(
                description="METEOR, ROUGE-1 and ROUGE-L, best over the references, per sample",
                citation="",
                features=datasets.Features(
                    {
                        "predictions": datasets.Value("string"),
                        "references": datasets.List(datasets.Value("string")),
                    }
                ),
            )

        def _compute(
            self, predictions: list[str], references: list[list[str]], **_: Any
        ) -> dict[str, list[float]]:
            scores: dict[str, list[float]] = {name: [] for name in SCORE_NAMES}
            for prediction, mine in zip(predictions, references, strict=True):
                scores["meteor"].append(
                    meteor_score(
                        [meteor_words(reference) for reference in mine], meteor_words(prediction)
                    )
                )
                for name, result in rouge.score_multi(mine, prediction).items():
                    scores[name].append(result.fmeasure)
            return scores

    return AnswerOverlap(keep_in_memory=True)
