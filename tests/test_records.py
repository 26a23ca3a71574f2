"""Records as they come: fields of any type are turned to text, or told in one line."""

import dataclasses
import json
import re
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

import hotpotqa_eval
import longbench_kv_eval
import narrativeqa_eval
from longctx import data, task
from longctx.errors import SettingError
from longctx.records import RecordError, text_of
from tests.runs import ROOT

HOTPOT = {
    "id": "i", "question": "q", "answer": "a", "type": "bridge",
    "supporting_facts": {"title": ["T"], "sent_id": [0]},
    "context": {"title": ["T"], "sentences": [["S. "]]},
}  # fmt: skip
LONGBENCH = {
    "_id": "i", "question": "q", "answer": "A", "difficulty": "easy", "length": "short",
    "context": "c", "choice_A": "one", "choice_B": "two", "choice_C": "three", "choice_D": "four",
}  # fmt: skip
NARRATIVE = {
    "document": {"id": "d", "text": "c", "summary": {"text": "s"}}, "question": {"text": "q"},
    "answers": [{"text": "a"}, {"text": "b"}],
}  # fmt: skip
PLAIN = {"context": "c", "question": "q", "answer": "a"}
SCRIPTS = {"hotpot": hotpotqa_eval, "longbench": longbench_kv_eval, "narrative": narrativeqa_eval}


def sample(script, record, **changes):
    """The sample of a record; ... leaves a field out."""
    record = {key: value for key, value in (record | changes).items() if value is not ...}
    return script.sample(record, 7, script.TASK.settings())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1912-04-15", "1912-04-15"), ("", ""), (0, "0"), (1812, "1812"), (10**30, "1" + "0" * 30),
        (True, "true"), (False, "false"), (0.5, "0.5"), (1812.0, "1812"), (-1e300, "-1e+300"),
        (Decimal("1.50"), "1.50"), (date(1912, 4, 15), "1912-04-15"),
        (datetime(1912, 4, 15), "1912-04-15"),
        (datetime(1912, 4, 15, 2, 20), "1912-04-15 02:20:00"),
        (datetime(1912, 4, 15, tzinfo=UTC), "1912-04-15 00:00:00+00:00"),
    ],
)  # fmt: skip
def test_values_as_text(value, text):
    assert text_of(value) == text


@pytest.mark.parametrize("value", [None, [], {}, float("nan"), float("inf"), Decimal("NaN"), b"a"])
def test_what_is_no_text(value):
    with pytest.raises(TypeError):
        text_of(value)


@pytest.mark.parametrize(
    ("answer", "references"),
    [
        (0, ["0"]), (False, ["false"]), (1812, ["1812"]), ("1912-04-15", ["1912-04-15"]),
        (["a", "b"], ["a", "b"]), ([{"text": 7}, {"text": None}, "b"], ["7", "b"]),
        ({"text": ["a", "b"], "answer_start": [1, 2]}, ["a", "b"]), ("", []), (None, []), ([], []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["answer", "answers"])
@pytest.mark.parametrize("script", [hotpotqa_eval, narrativeqa_eval], ids=["hotpot", "narrative"])
def test_answers_in_any_form(script, name, answer, references):
    made = sample(script, PLAIN | {"answer": ...}, **{name: answer})
    assert made.references == references


def test_plain_columns_mean_what_the_schema_means():
    plain = sample(hotpotqa_eval, PLAIN, evidence="c")
    assert plain.parts.document == "c"
    assert (plain.sample_id, plain.evidence, plain.extra) == ("record-7", ["c"], {"type": None})
    assert sample(narrativeqa_eval, PLAIN).parts == sample(narrativeqa_eval, NARRATIVE).parts
    bare = {key: LONGBENCH[key] for key in ("context", "question", "answer")}
    own = sample(longbench_kv_eval, LONGBENCH)
    texts = ["one", "two", "three", "four"]
    for choices in (
        texts,
        [{"text": text} for text in texts],
        dict(zip("ABCD", texts, strict=True)),
    ):
        made = sample(longbench_kv_eval, bare, choices=choices)
        assert (made.parts, made.choices) == (own.parts, own.choices)
        assert made.extra == {"difficulty": None, "length": None}


@pytest.mark.parametrize(
    ("answer", "letter"), [("B", "B"), (1, "B"), ("two", "B"), (" two ", "B"), (0, "A")]
)
def test_the_right_choice_by_letter_place_or_text(answer, letter):
    assert sample(longbench_kv_eval, LONGBENCH, answer=answer).references == [letter]


@pytest.mark.parametrize(
    ("script", "changes", "problem"),
    [
        ("hotpot", {"question": ..., "answer": ..., "context": ...},
         "no context, no question, no answer"),
        ("hotpot", {"question": " "}, "question is blank"),
        ("hotpot", {"question": ["q"]}, "question is a list, no text"),
        ("hotpot", {"answer": float("nan")}, "answer is nan, no text"),
        ("hotpot", {"answer": {"a": 1}}, "answer is an object, no text"),
        ("hotpot", {"id": {}}, "id is an object, no text"),
        ("hotpot", {"type": ["x"]}, "type is a list, no text"),
        ("hotpot", {"context": [["T", ["S"]]]}, "context is a list, no text"),
        ("hotpot", {"context": {"title": ["T"]}}, "no context.sentences"),
        ("hotpot", {"context": {"title": ["T"], "sentences": []}},
         "the lists of context are not equally long"),
        ("hotpot", {"context": {"title": ["T"], "sentences": [[["S"]]]}},
         "an item of an item of context.sentences is a list, no text"),
        ("hotpot", {"supporting_facts": {"title": ["T"], "sent_id": [-1]}},
         "supporting_facts.sent_id is no list of positions from 0"),
        ("hotpot", {"supporting_facts": [["T", 0]]}, "no supporting_facts.sent_id"),
        ("longbench", {"answer": "5"}, "its answer is '5', none of A, B, C, D and no choice"),
        ("longbench", {"answer": 4}, "its answer is '4', none of"),
        ("longbench", {"answer": -1}, "its answer is '-1', none of"),
        ("longbench", {"answer": True}, "its answer is 'true', none of"),
        ("longbench", {"answer": 1, "choice_A": 1}, "its answer is '1', which could mean A or B"),
        ("longbench", {"answer": None}, "no answer"),
        ("longbench", {"choice_B": ...}, "no choice_B"),
        ("longbench", {"choices": ["a"]}, "1 choices in place of 4"),
        ("longbench", {"evidence": [{"a": 1}]}, "an item of evidence is an object, no text"),
        ("narrative", {"document": ..., "question": {}}, "no document.text, no question.text"),
        ("narrative", {"question": {"text": "q", "evidence": [[]]}},
         "an item of question.evidence is a list, no text"),
    ],
)  # fmt: skip
def test_every_fault_of_a_record_is_told_at_once(script, changes, problem):
    records = {"hotpot": HOTPOT, "longbench": LONGBENCH, "narrative": NARRATIVE}
    with pytest.raises(RecordError, match="^" + re.escape(problem)):
        sample(SCRIPTS[script], records[script], **changes)


def test_the_data_sets_page_begins_with_the_examples():
    page = (ROOT / "docs/datasets.md").read_text(encoding="utf-8")
    shown = re.findall(r"```json\n(.*?)\n```", page, re.DOTALL)
    assert set(shown) == {script.TASK.example for script in SCRIPTS.values()}
    for script in SCRIPTS.values():
        assert script.TASK.example.count("\n") <= 3
        assert sample(script, json.loads(script.TASK.example)).references


def records_of(path):
    return list(data.find(str(path), "train").records())


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize(
    "text",
    [
        '{"a": "1912-04-15", "b": 1}\n{"a": 7, "b": null}\n',
        '\ufeff{"a": "1912-04-15", "b": 1}\r\n\r\n{"a": 7, "b": null}\r\n\r\n',
        '[{"a": "1912-04-15", "b": 1}, {"a": 7, "b": null}]',
        '[\n {"a": "1912-04-15",\n "b": 1},\n {"a": 7, "b": null}]\n\n',
    ],
)
def test_json_keeps_each_value_as_it_is(tmp_path, suffix, text):
    path = tmp_path / f"data{suffix}"
    path.write_bytes(text.encode())
    assert records_of(path) == [{"a": "1912-04-15", "b": 1}, {"a": 7, "b": None}]


def test_one_object_over_lines_is_one_record(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(NARRATIVE, indent=1))
    assert records_of(path) == [NARRATIVE]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"a": 1}\n{"a": \n{"a": 2}\n', "line 2 is no JSON: "),
        (b'[{"a": 1},\n{"a": ]', "line 2 is no JSON: "),
        (b'{"a": 1}\n7\n', "line 2 holds a record that is no object"),
        (b'[{"a": 1}, [2]]', "line 1 holds a record that is no object"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "line 2 is no UTF-8"),
        (b"[" * 100_000, "line 1 is nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b"\n \n", None),
    ],
)
def test_json_that_cannot_be_read_is_one_line(tmp_path, content, problem):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    if problem is None:
        assert records_of(path) == []
        return
    with pytest.raises(SettingError, match=f"cannot be read: {problem}"):
        records_of(path)


def test_half_of_a_surrogate_pair_becomes_a_sign_that_files_can_hold(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"a\\udcff": ["x\\ud83d", "\\ud83d\\udc00", {"b": "\\u0000"}]}\n')
    assert records_of(path) == [{"a\ufffd": ["x\ufffd", "\U0001f400", {"b": "\0"}]}]


def test_ids_that_are_not_unique_and_missing_answers_are_told(capsys):
    records = [PLAIN | {"id": 1}, PLAIN | {"id": "1"}, PLAIN | {"answer": None}]
    settings = hotpotqa_eval.HotpotQASettings(dataset_id="mine.jsonl")
    samples = task._parse(hotpotqa_eval.TASK, settings, records)
    assert [made.sample_id for made in samples] == ["1", "1 (record 1)", "record-2"]
    notes = capsys.readouterr().err
    assert "1 ids of mine.jsonl are not unique" in notes
    assert "1 of 3 records have no answer" in notes


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"sample_id": 1}, "its sample_id is no text"), ({"references": "a"}, "its references is no"),
     ({"references": [1]}, "its references is no"), ({"evidence": [None]}, "its evidence is no"),
     ({"extra": {"a": date(2026, 1, 1)}}, "date is not JSON")],
)  # fmt: skip
def test_samples_of_a_script_of_ones_own_are_checked_too(changes, problem):
    def careless(record, number, settings):
        return dataclasses.replace(hotpotqa_eval.sample(record, number, settings), **changes)

    mine = dataclasses.replace(hotpotqa_eval.TASK, sample=careless)
    with pytest.raises(SettingError, match=problem):
        task._parse(mine, hotpotqa_eval.HotpotQASettings(), [PLAIN])
