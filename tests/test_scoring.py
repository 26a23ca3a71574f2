"""What a request's answers become in its row, and floors of scores."""

from types import SimpleNamespace

import pytest

import hotpotqa_eval
import longbench_kv_eval
import narrativeqa_eval
from longctx import scoring, tables
from longctx.metrics import meteor_rouge
from longctx.prompts import Prompt, PromptParts
from longctx.task import Sample


class Characters:
    """A tokenizer of which each token is a character; token 0 is special."""

    added_tokens_decoder = {0: SimpleNamespace(special=True, content="<end>")}  # noqa: RUF012

    def decode(self, tokens, **_):
        return "".join(chr(token) for token in tokens if token)

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [0] * add_special_tokens + [ord(letter) for letter in text]}


def scored(outputs, *, script=longbench_kv_eval, ends="?", context="abc", evidence=(), **options):
    sample = Sample(
        "s", PromptParts("", "", ""), ["B"], list(evidence), dict(zip("ABCD", "wxyz", strict=True)),
        question="Who is B?",
    )  # fmt: skip
    prompt = Prompt(context + ends, context, [1, 2, 3], 2, 0, 1)
    tokens = [[*map(ord, output), 0] for output in outputs]
    options = {"prompt_is_raw": False, "compared": (), "has_quality": True} | options
    return scoring.scored_samples(
        script.TASK,
        [(sample, prompt)] * len(outputs),
        SimpleNamespace(new_tokens=tokens, choice_log_probs=options.pop("log_probs", [{}])),
        Characters(),
        **options,
    )


def one(output, **options):
    (sample,) = scored([output], log_probs=[{}], **options)
    return sample


@pytest.mark.parametrize(
    ("evidence", "kept"),
    [(["ab", "c"], True), (["ab", "x"], False), (["x", "ab"], False), (["x"], False), ([], None)],
)
def test_evidence_is_kept_where_all_of_it_is(evidence, kept):
    assert one("B", evidence=evidence)["evidence_kept"] is kept


def test_a_sample_holds_its_question_and_on_demand_its_prompt():
    assert one("B")["question"] == "Who is B?"
    assert "prompt" not in one("B")
    assert one("B", save_prompts=True)["prompt"] == "abc?"
    sample = Sample("s", PromptParts("Read. ", "text", "\nWho?\nAnswer:"), ["B"])
    assert sample.asked == "Who?\nAnswer:"
    record = {"context": "text", "question": " Who? ", "answer": "B"}
    record |= {f"choice_{letter}": letter for letter in "ABCD"}
    for script in (narrativeqa_eval, hotpotqa_eval, longbench_kv_eval):
        sample = script.TASK.sample(dict(record), 0, script.TASK.settings())
        assert sample.asked == "Who?"


def test_letters_are_scored_both_ways():
    sample = one("The correct answer is Because")
    assert (sample["prediction"], sample["em"], sample["em_official"]) == ("", 0, 1)
    assert sample["answered"] is False
    sample = one("Answer: B")
    assert (sample["prediction"], sample["em"], sample["em_official"]) == ("B", 1, 0)
    assert (sample["new_tokens"], sample["thought_tokens"]) == (10, 0)
    assert list(sample)[-2:] == ["em", "em_official"]


def test_thoughts_are_counted_apart_and_stay_in_the_output():
    text = "<think>The correct answer is (A).</think>The correct answer is (B)."
    sample = one(text)
    assert (sample["output"], sample["prediction"], sample["em_official"]) == (text, "B", 1)
    assert sample["thought_tokens"] == text.index("</think>") + len("</think>")
    cut_off = one(text[:20])
    assert (cut_off["prediction"], cut_off["em_official"], cut_off["answered"]) == ("", 0, False)
    assert cut_off["thought_tokens"] == cut_off["new_tokens"] == 21


def test_a_thought_that_the_prompt_opened():
    open_thought = one("The correct answer is (B)", ends="<think>\n")
    assert (open_thought["prediction"], open_thought["em_official"]) == ("", 0)
    assert open_thought["thought_tokens"] == open_thought["new_tokens"]
    assert open_thought["output"] == "The correct answer is (B)"
    closed = one("(A)?</think>The correct answer is (B)", ends="<think>\n")
    assert (closed["prediction"], closed["em_official"]) == ("B", 1)
    assert closed["thought_tokens"] == len("(A)?</think>")


def test_random_weights_have_no_quality_and_compared_letters_no_official_reading():
    nothing = one("B", has_quality=False)
    assert nothing["em"] is nothing["em_official"] is nothing["answered"] is None
    best, none = scored(
        ["B", "C"],
        compared=("A", "B"),
        log_probs=[[-2.0, -1.0], [float("nan"), -1.0]],
    )
    assert (best["prediction"], best["em"], best["em_official"]) == ("B", 1, None)
    assert (none["prediction"], none["em"]) == ("", 0)
    assert best["choice_log_probs"] == {"A": -2.0, "B": -1.0}


@pytest.mark.parametrize(
    ("dataset_id", "references", "are_keys"),
    [
        ("synthetic", ["in the mill"], False),
        ("synthetic-passkey", ["54916"], True),
        ("mine.jsonl", ["54916", " A-7 "], True),
        ("mine.jsonl", ["54916", "in the mill"], False),
        ("mine.jsonl", ["Anna"], False),
        ("mine.jsonl", [], False),
        ("deepmind/narrativeqa", ["Anna", "1876"], False),
    ],
)
def test_keys_are_scored_by_containing_them_first(dataset_id, references, are_keys):
    settings = narrativeqa_eval.NarrativeQASettings(dataset_id=dataset_id)
    task = narrativeqa_eval.TASK.for_data(
        settings, [Sample("s", PromptParts("", "", ""), references)]
    )
    names = ("f1", "f1_official", "meteor", "rouge1", "rougeL")
    assert task.score_names == (("contains", "em", *names) if are_keys else names)


def test_narrativeqa_reads_a_line_after_a_raw_prompt_and_the_official_script_all():
    sample = one("B.\nQuestion: B?", script=narrativeqa_eval, prompt_is_raw=True)
    assert (sample["prediction"], sample["f1"]) == ("B.", 1)
    assert sample["f1_official"] == pytest.approx(2 / 4)
    assert "contains" not in sample


def answer(name, prediction, reference, document="", **scores):
    return {
        "sample_id": name, "document_id": document or name, "prediction": prediction,
        "references": [reference], "em": 0.0, **scores,
    }  # fmt: skip


def test_a_floor_is_the_score_of_answers_to_other_questions():
    task = longbench_kv_eval.TASK
    rows = [
        {"success": True, "samples": [answer("1", "A", "A"), answer("2", "B", "A")]},
        {"success": False, "samples": []},
        {"success": True, "samples": [answer("3", "A", "B")]},
    ]
    # A meets A and B, B meets A and B, A meets A and A.
    assert scoring.floors(task, rows, 0) == {
        "em_floor": pytest.approx(4 / 6),
        "em_official_floor": None,
    }
    many = [{"success": True, "samples": [answer(str(n), "A", "AB"[n % 2]) for n in range(40)]}]
    assert scoring.floors(task, many, 0) == scoring.floors(task, many, 0)
    assert 0.4 < scoring.floors(task, many, 0)["em_floor"] < 0.6
    # Nothing is measured against the same document, or without scores.
    same = [{"success": True, "samples": [answer("1", "A", "A", "d"), answer("2", "B", "A", "d")]}]
    assert scoring.floors(task, same, 0)["em_floor"] is None
    none = [{"success": True, "samples": [answer(str(n), "A", "A") | {"em": None} for n in (1, 2)]}]
    assert scoring.floors(task, none, 0)["em_floor"] is None
    assert scoring.floors(task, [], 0)["em_floor"] is None


def test_a_table_shows_the_floor_below_its_score():
    summary = {"context_tokens": 8, "n_oom": 0, "total_count": 2, "em": 0.5, "em_floor": 0.25}
    run = {"run_meta": {"score_names": ["em"]}, "ctx_summaries": [summary]}
    labels = [label for label, *_ in tables.lines_of([run])]
    assert labels[labels.index("em") + 1] == "  floor: answers shuffled"


def test_every_score_of_narrativeqa_is_computed():
    (scores,) = narrativeqa_eval.score(["Anna"], [["Anna"]])
    assert set(scores) == {"contains", "em", "f1", *meteor_rouge.SCORE_NAMES}
