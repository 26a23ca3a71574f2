import json
from collections import Counter
from pathlib import Path

import pytest

import longbench_kv_eval
from longctx import synthetic
from tests.test_synthetic import count

SHARED = Path(__file__).parents[2] / "shared" / "data" / "longbench_v2.jsonl"
SETTINGS = longbench_kv_eval.LongBenchSettings()


def test_the_prompt_is_the_official_one():
    record = {
        "_id": "x", "difficulty": "easy", "length": "short", "question": " Why? ", "answer": "C",
        "choice_A": "a ", "choice_B": "b", "choice_C": " c", "choice_D": "d", "context": "\nDoc.\n",
    }  # fmt: skip
    sample = longbench_kv_eval.sample(record, 0, SETTINGS)
    parts = sample.parts
    assert parts.before + parts.document + parts.after == (
        "Please read the following text and answer the question below.\n\n<text>\nDoc.\n</text>"
        "\n\nWhat is the correct answer to this question: Why?\nChoices:\n(A) a\n(B) b\n(C) c\n"
        '(D) d\n\nFormat your response as follows: "The correct answer is (insert answer here)".'
    )
    assert parts.answer_start == ""
    assert sample.evidence == []
    compared = longbench_kv_eval.LongBenchSettings(answer_mode="loglikelihood")
    assert (
        longbench_kv_eval.sample(record, 0, compared).parts.answer_start
        == "The correct answer is ("
    )
    with pytest.raises(ValueError, match="its answer is 'E', none of A, B, C, D"):
        longbench_kv_eval.sample(record | {"answer": "E"}, 0, SETTINGS)


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not here")
def test_real_records():
    with SHARED.open(encoding="utf-8") as lines:
        samples = [
            longbench_kv_eval.sample(json.loads(line), number, SETTINGS)
            for number, line in enumerate(lines)
        ]
    assert len(samples) == 60
    for sample in samples:
        right = sample.references[0]
        for text in (f"The correct answer is ({right}) {sample.choices[right]}", f"{right}."):
            assert longbench_kv_eval.answer(text, sample, False) == right
        words = longbench_kv_eval.answer(sample.choices[right], sample, False)
        assert words == right


def records(number=40, tokens=600, seed=0):
    return synthetic.four_choices(seed, number, tokens, count)


def test_four_choices_are_balanced_and_deterministic():
    assert records() == records()
    assert records() != records(seed=1)
    by_difficulty = Counter((record["difficulty"], record["answer"]) for record in records())
    assert set(by_difficulty.values()) == {5}
    assert len(by_difficulty) == 8


@pytest.mark.parametrize("tokens", [150, 600, 4000])
def test_four_choices_have_their_length_and_every_choice(tokens):
    for short, long in zip(records(8, 0), records(8, tokens), strict=True):
        text = long["context"]
        assert tokens - 20 <= count(text) <= tokens
        for key in ("question", "answer", "choice_A", "choice_B", "choice_C", "choice_D"):
            assert short[key] == long[key]
        for record in (short, long):
            places = {record[f"choice_{letter}"].strip(".").lower() for letter in "ABCD"}
            assert len(places) == 4
            for place in places:
                assert place.removeprefix("in ") in record["context"]
        assert all(sentence in text for sentence in long["evidence"])
        positions = [text.index(sentence) for sentence in long["evidence"]]
        assert positions == sorted(positions)
        right = long[f"choice_{long['answer']}"].removeprefix("In ")
        assert right.strip(".") in long["evidence"][-1]
        assert len(long["evidence"]) == (2 if long["difficulty"] == "hard" else 1)
        assert long["length"] == "short"


def test_the_evidence_is_told_in_the_words_of_the_wrong_choices():
    for record in records(8, 300):
        pattern = "left the" if record["difficulty"] == "easy" else "took the"
        person = record["evidence"][-1].split()[0]
        told = [s for s in record["context"].split(". ") if s.startswith(f"{person} {pattern}")]
        assert len(told) == 4
