import json
from pathlib import Path

import pytest

import hotpotqa_eval
from longctx import synthetic
from longctx.prompts import PromptBuilder
from tests.test_synthetic import count

SHARED = Path(__file__).parents[2] / "shared" / "data" / "hotpotqa_distractor.jsonl"
SETTINGS = hotpotqa_eval.HotpotQASettings()


def record(**changes):
    return {
        "id": "q1",
        "question": " Who ran? ",
        "answer": "Zoë",
        "type": "bridge",
        "supporting_facts": {"title": ["T", "U"], "sent_id": [1, 0]},
        "context": {
            "title": ["T", "U"],
            "sentences": [["One.", " Two."], ["Zoë ran.", ""]],
        },
    } | changes


def test_the_prompt_is_longbenchs():
    sample = hotpotqa_eval.sample(record(), 0, SETTINGS)
    instructions = (
        "Answer the question based on the given passages. Only give me the answer and do not "
        "output any other words.\n\n"
    )
    assert sample.parts.before + sample.parts.document + sample.parts.after == (
        f"{instructions}The following are given passages.\n"
        "Passage 1:\nT\nOne. Two.\nPassage 2:\nU\nZoë ran."
        f"\n\n{instructions}Question: Who ran?\nAnswer:"
    )
    assert sample.evidence == ["Two.", "Zoë ran."]
    assert sample.references == ["Zoë"]


def test_awkward_records():
    facts = {"title": ["T", "missing", "U"], "sent_id": [9, 0, 0]}
    sample = hotpotqa_eval.sample(record(supporting_facts=facts, answer=None), 0, SETTINGS)
    assert sample.evidence == ["Zoë ran."]
    assert sample.references == []
    empty = {"title": [], "sentences": []}
    assert hotpotqa_eval.sample(record(context=empty), 0, SETTINGS).parts.document == ""


@pytest.mark.model
def test_evidence_that_is_cut_away(builtin_tokenizer):
    builder = PromptBuilder(builtin_tokenizer, chat_template=False)
    filler = "The river is long. " * 80
    context = {"title": ["T", "U"], "sentences": [["One.", filler, " Two."], ["Zoë ran.", filler]]}
    facts = {"title": ["T", "U"], "sent_id": [2, 0]}
    sample = hotpotqa_eval.sample(record(context=context, supporting_facts=facts), 0, SETTINGS)
    kept = {
        truncate: [text in builder.build(sample.parts, 300, truncate).context
                   for text in sample.evidence]
        for truncate in ("middle", "head", "tail")
    }  # fmt: skip
    assert kept["middle"] == [False, False]
    assert kept["head"] == [False, False]
    whole = builder.build(sample.parts, 4000, "middle")
    assert all(text in whole.context for text in sample.evidence)
    assert "Question:" not in whole.context


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not here")
def test_real_records():
    samples = [
        hotpotqa_eval.sample(json.loads(line), number, SETTINGS)
        for number, line in enumerate(SHARED.read_text(encoding="utf-8").splitlines())
    ]
    assert len(samples) == 76
    for sample in samples:
        assert len(sample.evidence) >= 2
        assert all(text in sample.parts.document for text in sample.evidence)
        assert sample.extra["type"] in ("bridge", "comparison")


def two_hop(seed=0, number=40, tokens=600):
    return synthetic.two_hop(seed, number, tokens, count, passage=hotpotqa_eval.passage)


def test_two_hop_records_are_deterministic_and_balanced():
    records = two_hop()
    assert records == two_hop()
    assert records != two_hop(seed=1)
    assert [r["type"] for r in records[:2]] == ["bridge", "comparison"]
    answers = [r["answer"] for r in records if r["type"] == "comparison"]
    assert (answers.count("yes"), answers.count("no"), len(answers)) == (5, 5, 20)
    assert len({r["question"] for r in records}) == 40


@pytest.mark.parametrize("tokens", [200, 700, 3000])
def test_two_hop_lengths_and_evidence(tokens):
    same_questions = two_hop(number=8, tokens=0)
    for short, long in zip(same_questions, two_hop(number=8, tokens=tokens), strict=True):
        sample = hotpotqa_eval.sample(long, 0, SETTINGS)
        assert tokens - 25 <= count(sample.parts.document) <= tokens
        assert (short["question"], short["answer"]) == (long["question"], long["answer"])
        assert len(short["context"]["title"]) == 2
        titles = long["context"]["title"]
        assert len(set(titles)) == len(titles)
        assert len(sample.evidence) == 2
        # The answer follows from the evidence, and other paragraphs are told in the same words.
        evidence = " ".join(sample.evidence)
        if long["answer"] not in ("yes", "no"):
            assert long["answer"] in evidence
        born = [s for p in long["context"]["sentences"] for s in p if " was born in " in s]
        assert len(born) > 2


def test_the_two_hops_of_a_bridge():
    for long in two_hop(number=20, tokens=500)[::2]:
        work, author = hotpotqa_eval.sample(long, 0, SETTINGS).evidence
        title, name = long["supporting_facts"]["title"]
        assert title in long["question"]
        assert name in work
        assert name not in long["question"]
        assert name in author
        assert long["answer"] in author
