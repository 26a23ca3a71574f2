import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from context_histograms import count_tokens, fields
from context_histograms.count_tokens import count, summarize
from longctx.errors import SettingError

ROOT = Path(__file__).parents[1]
AWKWARD = [
    "",
    " ",
    "\n\n",
    "a\x00b",
    "👩‍👩‍👧‍👦🏽",
    "漢字かな交じり文",
    "e\u0301\u0323 o\u0308",
    "\u202eabc",
    "<|im_end|>",
]


def awkward_texts(number, seed=0):
    """Uneven texts, some of them more than once."""
    draw = random.Random(seed)
    pieces = [*AWKWARD, "word ", "The quick brown fox. ", "1234567890"]
    texts = ["".join(draw.choices(pieces, k=draw.randrange(60))) for _ in range(number)]
    return [*texts, *draw.choices(texts, k=number // 3), *AWKWARD]


def alone(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture
def run(builtin_folder, tmp_path, monkeypatch, capsys):
    """Runs the script on records in a file; returns what it wrote and what it said."""
    monkeypatch.setattr(count_tokens, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "argv", ["count_tokens.py"])

    def runs(path, **variables):
        environ = {
            "MODEL_ID": str(builtin_folder),
            "DATASET_ID": str(path),
            "LOGDIR": str(tmp_path / "logs"),
        }
        count_tokens.main(count_tokens.CountSettings, "", count_tokens._work, environ | variables)
        said = capsys.readouterr()
        written = re.search(r"\S+\.json$", said.out.strip()).group()
        return json.loads(Path(written).read_text()), said

    return runs


def write(path, records):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


@pytest.mark.model
@pytest.mark.parametrize("batch_characters", [1, 300, 10**9])
@pytest.mark.parametrize("threads", ["true", "false"])
def test_counts_are_those_of_each_text_alone(
    builtin_tokenizer, monkeypatch, batch_characters, threads
):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", threads)
    monkeypatch.setattr(count_tokens, "_BATCH_CHARACTERS", batch_characters)
    texts = awkward_texts(40)
    entries = count(((text, None) for text in texts), builtin_tokenizer)["counts"]
    different = list(dict.fromkeys(texts))
    assert [entry["tokens"] for entry in entries] == [
        alone(builtin_tokenizer, text) for text in different
    ]
    assert [entry["samples"] for entry in entries] == [texts.count(text) for text in different]


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_summaries_are_numpys(size):
    draw = np.random.default_rng(size)
    tokens, samples = draw.integers(0, 200_000, size).tolist(), draw.integers(1, 9, size).tolist()
    counts = [
        {"tokens": t, "samples": s, "groups": {}} for t, s in zip(tokens, samples, strict=True)
    ]
    summary = summarize(counts)
    for percent in (5, 25, 50, 75, 95):
        assert summary[f"p{percent}"] == pytest.approx(np.percentile(tokens, percent))
    assert (summary["min"], summary["max"]) == (np.min(tokens), np.max(tokens))
    assert summary["mean"] == pytest.approx(np.mean(tokens))
    each_sample = np.repeat(tokens, samples)
    for limit in (2**power for power in range(11, 18)):
        fits = summary["samples_that_fit"][str(limit)], summary["texts_that_fit"][str(limit)]
        assert fits == pytest.approx(
            (np.mean(each_sample <= limit), np.mean(np.array(tokens) <= limit))
        )


@pytest.mark.parametrize(
    ("record", "path", "text"),
    [
        ({"a": "x"}, "a", "x"),
        ({"a": {"b": {"c": ""}}}, "a.b.c", ""),
        ({"a": None}, "a", None),
        ({"a": None}, "a.b.c", None),
        ({"a": []}, "a", ""),
        ({"a": ["x", None, "", "y"]}, "a", "x\n\ny"),
        (
            {"context": {"sentences": [["A.", " B."], [], ["C."]]}},
            "context.sentences",
            "A. B.\n\nC.",
        ),
        ({"answers": [{"text": "x"}, {"text": "y"}]}, "answers.text", "x\ny"),
    ],
)
def test_a_field_is_found_by_its_path(record, path, text):
    assert list(fields.texts([record], path, None)) == [(text, None)]


def test_later_records_may_lack_the_field_and_labels_are_texts():
    records = [{"a": "x", "b": 0}, {"b": None}, {"a": "y"}]
    assert list(fields.texts(records, "a", "b")) == [("x", "0"), (None, "none"), ("y", "none")]
    with pytest.raises(SettingError, match="record 0 holds no label there"):
        list(fields.texts([{"a": "x", "b": float("nan")}], "a", "b"))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"FIELD": "document.txt"}, "FIELD=document.txt: no such field; the fields are id, doc"),
        ({"FIELD": "document.text.more"}, "no such field; the fields are id, document.text, n"),
        ({"FIELD": "document"}, "record 0 holds no text there but dict; the fields are id"),
        ({"FIELD": "n"}, "record 0 holds no text there but int"),
        ({"FIELD": "nothing"}, "FIELD=nothing: is null in all 2 records"),
        ({"FIELD": ""}, "FIELD=: is empty"),
        ({"GROUP_BY": "labels"}, "GROUP_BY=labels: record 0 holds no label there"),
        ({"GROUP_BY": "labl"}, "GROUP_BY=labl: no such field"),
        ({"N_SAMPLES": "0"}, "N_SAMPLES=0: "),
        ({"DATASET_ID": "synthetic"}, "DATASET_ID=synthetic: is written to fit each context"),
        ({"DATASET_ID": "synthetic-passkey"}, "synthetic-passkey: is written to fit each context"),
        ({"MODEL_ID": "random/mistral-7b"}, "MODEL_ID=random/mistral-7b: is a shape without"),
    ],
)
@pytest.mark.model
def test_a_bad_setting_is_one_line_and_exit_code_2(run, tmp_path, capsys, variables, message):
    records = [{"id": "1", "document": {"text": "x"}, "n": 3, "nothing": None, "labels": ["a"]}] * 2
    with pytest.raises(SystemExit) as stop:
        run(write(tmp_path / "data.jsonl", records), **variables)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


@pytest.mark.model
def test_a_file_may_be_named_as_written_data_are(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "synthetic-mine.jsonl", [{"a": "the same"}])
    result, _ = run("synthetic-mine.jsonl", FIELD="a")
    assert [entry["tokens"] for entry in result["counts"]] == [2]


@pytest.mark.model
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_kinds_of_files_and_the_empty_data_set(run, builtin_tokenizer, tmp_path, suffix, capsys):
    texts = [*AWKWARD, None, "the same", "the same"]
    records = [{"a": {"b": text}, "kind": "odd" if text else None} for text in texts]
    path = write(tmp_path / f"data{suffix}", records)
    result, said = run(path, FIELD="a.b", GROUP_BY="kind")
    expected = [alone(builtin_tokenizer, text) for text in [*AWKWARD, "the same"]]
    assert [entry["tokens"] for entry in result["counts"]] == expected
    assert result["n_missing"] == 1
    assert result["summary"]["n_samples"] == len(texts) - 1
    assert result["counts"][-1] == {"tokens": 2, "samples": 2, "groups": {"odd": 2}}
    assert {label: group["n_samples"] for label, group in result["groups"].items()} == {
        "none": 1,
        "odd": len(texts) - 2,
    }
    assert "1 records have no text there" in said.out
    assert result["command"].startswith("MODEL_ID=")
    first, said = run(path, FIELD="a.b", N_SAMPLES="3")
    assert first["summary"]["n_samples"] == 3
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"a": pyarrow.array([], pyarrow.string())}), path)
    else:
        path.write_text("[]" if suffix == ".json" else "")
    with pytest.raises(SystemExit, match="2"):
        run(path)
    assert capsys.readouterr().err == f"error: DATASET_ID={path}: holds no records\n"


@pytest.mark.model
def test_the_same_is_counted_once_and_a_changed_file_anew(run, tmp_path, monkeypatch):
    path = write(tmp_path / "data.jsonl", [{"a": "one two", "b": "x"}, {"a": "three", "b": "y"}])
    counted = []
    tokens = count_tokens.token_counts
    monkeypatch.setattr(
        count_tokens, "token_counts", lambda t, texts: counted.extend(texts) or tokens(t, texts)
    )
    first, said = run(path, FIELD="a")
    assert counted == ["one two", "three"]
    assert "counted before" not in said.err
    again, said = run(path, FIELD="a")
    assert counted == ["one two", "three"]
    assert "counted before" in said.err
    assert again == first
    # Of the same length and time: only the content says that it changed.
    status = path.stat()
    path.write_text(path.read_text().replace("three", "other"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    run(path, FIELD="a")
    assert counted[2:] == ["one two", "other"]
    run(path, FIELD="a", N_SAMPLES="1")
    run(path, FIELD="b")
    assert counted[4:] == ["one two", "x", "y"]
    for n_before, torn in ((7, '{"counts": ['), (9, "[]"), (11, '{"counts": [1], "n_missing": 0}')):
        for kept in (tmp_path / "home").rglob("*.json"):
            kept.write_text(torn)
        run(path, FIELD="b")
        assert counted[n_before:] == ["x", "y"]


@pytest.mark.model
def test_another_tokenizer_counts_anew(run, tmp_path, builtin_tokenizer, builtin_folder):
    from tokenizers import pre_tokenizers

    path = write(tmp_path / "data.jsonl", [{"a": "several words here 12345"}])
    other = type(builtin_tokenizer).from_pretrained(builtin_folder)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=False)
    other.add_tokens(["several words here"])
    other.save_pretrained(tmp_path / "other")
    usual, _ = run(path, FIELD="a")
    result, said = run(path, FIELD="a", MODEL_ID=str(tmp_path / "other"))
    assert "counted before" not in said.err
    assert result["tokenizer"] == "other"
    assert result["summary"]["max"] < usual["summary"]["max"]


@pytest.mark.model
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Peak memory of a file five times as long is the same but for the allocator's whims."""
    script = """
import resource, sys
from context_histograms import count_tokens, fields
from longctx import data

count_tokens._BATCH_CHARACTERS = 1_000_000

def tokenizer(texts, **options):
    assert sum(map(len, texts)) < 1_200_000
    return {"input_ids": [[0] * len(text.split()) for text in texts]}

for path in sys.argv[1:]:
    records = data.find(path, "train").records()
    counted = count_tokens.count(fields.texts(records, "a.b", None), tokenizer)
    print(len(counted["counts"]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    paths = []
    for n_records in (300, 1500):
        records = (
            {"a": {"b": f"{number} " * 15_000}} for number in range(10_000, 10_000 + n_records)
        )
        paths.append(write(tmp_path / f"{n_records}.jsonl", records))
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, paths)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    (few, small_kb), (many, large_kb) = (
        map(int, line.split()) for line in done.stdout.split("\n")[:2]
    )
    assert (few, many) == (300, 1500)
    assert paths[1].stat().st_size > 130_000_000
    assert large_kb - small_kb < 40_000


def test_a_hub_data_set_is_known_by_split_and_version(tmp_path, monkeypatch):
    """A local folder takes the way of a hub data set."""
    from longctx import data

    monkeypatch.setattr(data.hub, "go_offline_if_unreachable", lambda: None)
    write(tmp_path / "train.jsonl", [{"a": "x"}])
    write(tmp_path / "test.jsonl", [{"a": "y"}])
    source = data.find(str(tmp_path), "test")
    assert list(source.records()) == [{"a": "y"}]
    before = source.fingerprint()
    assert data.find(str(tmp_path), "test").fingerprint() == before
    write(tmp_path / "test.jsonl", [{"a": "longer"}])
    assert data.find(str(tmp_path), "test").fingerprint() != before
    with pytest.raises(SettingError, match="DATASET_ID"):
        data.find(str(tmp_path), "dev")


@pytest.mark.parametrize("script", [*(ROOT / "context_histograms").glob("*_tokens.py")])
def test_a_script_starts_from_its_own_folder(script):
    done = subprocess.run(
        [sys.executable, script.name, "--help"],
        cwd=script.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "N_SAMPLES" in done.stdout
    assert "KV_MODE" not in done.stdout
    assert str(ROOT) not in done.stdout
