import re

import pytest

import narrativeqa_eval
from longctx import synthetic
from longctx.synthetic._village import THINGS
from tests.scripts import SCRIPTS


def count(text):
    return len(text.split())


def test_stories_are_deterministic_and_differ():
    first = synthetic.stories(3, 5, 400, count)
    assert first == synthetic.stories(3, 5, 400, count)
    assert first != synthetic.stories(4, 5, 400, count)
    assert len({record["question"]["text"] for record in first}) == 5


def test_stories_have_the_length_asked_for():
    for tokens in (40, 400, 4000):
        for record in synthetic.stories(0, 4, tokens, count):
            assert tokens - 20 <= count(record["document"]["text"]) <= tokens


def test_question_and_answer_do_not_depend_on_the_length():
    short, long = synthetic.stories(0, 6, 0, count), synthetic.stories(0, 6, 900, count)
    for a, b in zip(short, long, strict=True):
        assert a["question"]["text"] == b["question"]["text"]
        assert a["answers"] == b["answers"]


def test_answers_stand_once_at_their_depth_and_depths_are_spread():
    records = synthetic.stories(0, 40, 1500, count)
    depths = []
    for record in records:
        text, question = record["document"]["text"], record["question"]
        thing = next(t for t in THINGS if t in question["text"])
        sentences = [s for s in text.split(". ") if thing in s]
        assert 1 <= len(sentences) <= 2
        place = record["answers"][0]["text"].removeprefix("in the ")
        assert place in sentences[-1]
        assert abs(text.index(sentences[-1]) / len(text) - question["answer_depth"]) < 0.02
        depths.append(question["answer_depth"])
    for quarter in range(4):
        assert 8 <= sum(quarter / 4 <= depth < (quarter + 1) / 4 for depth in depths) <= 12


def test_stories_name_the_sentence_that_the_answer_stands_in():
    for record in synthetic.stories(0, 20, 300, count):
        sample = narrativeqa_eval.sample(record, 0, narrativeqa_eval.NarrativeQASettings())
        (sentence,) = sample.evidence
        assert sample.parts.document.count(sentence) == 1
        assert any(reference.split()[-1].strip(".") in sentence for reference in sample.references)


def test_a_pass_key_is_said_once_at_its_depth_whatever_the_length():
    records = synthetic.pass_keys(0, 20, 900, count)
    assert records == synthetic.pass_keys(0, 20, 900, count)
    assert records != synthetic.pass_keys(1, 20, 900, count)
    depths = []
    for record in records:
        text, question = record["document"]["text"], record["question"]
        (answer,) = record["answers"]
        assert text.count(f" The pass key is {answer['text']}. ") == 1
        assert re.findall(r"\d+|pass key", text) == ["pass key", answer["text"]]
        assert 880 <= count(text) <= 900
        place = text.index(answer["text"]) / len(text)
        assert abs(place - question["answer_depth"]) < 0.02
        depths.append(question["answer_depth"])
    assert [sum(q / 4 <= d < (q + 1) / 4 for d in depths) for q in range(4)] == [5] * 4
    short = synthetic.pass_keys(0, 20, 0, count)
    assert [r["answers"] for r in short] == [r["answers"] for r in records]


def test_every_task_writes_data_and_all_ids_are_known():
    tasks = [script.TASK for script in SCRIPTS.values()]
    written = [{*task.synthesize, *task.compose} for task in tasks]
    assert all("synthetic" in mine for mine in written)
    assert set.union(*written) == set(synthetic.DATASET_IDS)


@pytest.mark.parametrize(("make", "answers"), [(synthetic.stories, 2), (synthetic.pass_keys, 1)])
def test_records_are_of_narrativeqas_schema(make, answers):
    (record,) = make(0, 1, 100, count)
    assert set(record) == {"document", "question", "answers"}
    assert set(record["document"]) == {
        "id", "kind", "url", "file_size", "word_count", "start", "end", "summary", "text",
    }  # fmt: skip
    assert len(record["answers"]) == answers
