import gzip
import json
import os
import unicodedata

import pytest

from longctx import load_results
from longctx.console import printable
from tests.saved_runs import full_results, write

HOSTILE = (
    "\x1b]0;title\x07\x1b[31m\x9b2J\r\x00",
    "\u202egpj.exe\u202c \u2066x\u2069 \u200f",
    "a\u2028b\u2029c",
    "\ud800",
    "\U000e0041\U000e007f",
)
STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize("text", HOSTILE)
def test_no_character_that_steers_hides_or_turns_text_is_left(tmp_path, text):
    run = full_results([0.5, 0.25], model=text, variables={text: text})
    run["rows"][0]["samples"][0] |= {"prediction": text, "references": [f"ok {text} ok"]}
    (path,) = write(tmp_path, a=run)
    read = load_results.read(path)
    texts = json.dumps(read, ensure_ascii=False)
    assert not [letter for letter in texts if unicodedata.category(letter) in STEERING]
    reference = read["rows"][0]["samples"][0]["references"][0]
    assert reference.startswith("ok ")
    assert reference.endswith(" ok")
    assert "\N{REPLACEMENT CHARACTER}" in reference


def test_ordinary_text_stays():
    text = "line\n\tعربى עברית 日本語 👩‍👧 e\u0301 <b>&amp;</b> naïve"
    assert printable(text) == text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is not whole JSON"),
        ('{"run_meta": {"run', "is not whole JSON"),
        ("[" * 100_000, "is not whole JSON"),
        ("9" * 5000, "is not whole JSON"),
        ("[]", "is not full results of a run: it: "),
        ('{"trials": 3}', "is not full results of a run: run_meta: Field required"),
        (b"\xff\xfe\x00", "is not whole JSON"),
        (b"\x80abc", "is not whole JSON"),
        ('{"a":' * 60 + "1" + "}" * 60, "nested more than 50 deep"),
    ],
)
def test_a_file_that_is_no_run_is_one_line(tmp_path, content, problem):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(load_results.UnusableFileError, match=problem) as caught:
        load_results.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: run["run_meta"].pop("variables"),
        lambda run: run["run_meta"]["variables"].update(KV_MODE=3),
        lambda run: run["ctx_summaries"][0].update(meteor="0.5"),
        lambda run: run["ctx_summaries"][0].update(meteor_ci95=[0.1]),
        lambda run: run["ctx_summaries"][0].update(meteor_floor="0.1"),
        lambda run: run["ctx_summaries"][0].update(ttft_ms_p50=[1]),
        lambda run: run["rows"][0].update(ttft_ms={}),
        lambda run: run["rows"][0].update(ms_per_token_decode=-5),
        lambda run: run["rows"][0].update(success=None),
        lambda run: run["rows"][0]["samples"][0].update(document_tokens=[]),
        lambda run: run["run_meta"].update(groups=["type"]),
        lambda run: run["run_meta"].update(groups=3),
        lambda run: run["run_meta"].update(device={"name": {}}),
        lambda run: run["run_meta"]["variables"].update(SKIP_LAYERS=[{}]),
        lambda run: run["run_meta"]["variables"].update(KEEP_TOKENS="x"),
        lambda run: run["ctx_summaries"][0].update(context_tokens=10**400),
        lambda run: run["ctx_summaries"][0].update(x={"meteor_ci95": [1, 2, 3]}),
        lambda run: run["ctx_summaries"][0].update(chance="x"),
        lambda run: run["ctx_summaries"][0].update(em_told_from_chance="x"),
        lambda run: run["rows"][0]["samples"][0].update(meteor="high"),
        lambda run: run["rows"][0]["samples"][0].update(references="r"),
    ],
)
def test_figures_that_are_none_are_found_out(tmp_path, spoil):
    run = full_results([0.5, 0.25])
    spoil(run)
    (path,) = write(tmp_path, a=run)
    with pytest.raises(load_results.UnusableFileError, match="is not full results"):
        load_results.read(path)


def test_what_is_not_a_number_is_not_measured(tmp_path):
    text = json.dumps(full_results([0.5], rows={"ttft_ms": float("nan"), "kv_cache_gb": 0.5}))
    path = tmp_path / "a.json"
    path.write_text(text.replace('"kv_cache_gb": 0.5', '"kv_cache_gb": 1e999'))
    run = load_results.read(path)
    assert run["rows"][0]["ttft_ms"] is run["rows"][0]["kv_cache_gb"] is None
    assert "Infinity" not in json.dumps(run)


def test_huge_numbers_are_not_measured(tmp_path):
    run = full_results([0.5], rows={"ttft_ms": 10**400, "kv_cache_gb": 1e300})
    (path,) = write(tmp_path, a=run)
    row = load_results.read(path)["rows"][0]
    assert row["ttft_ms"] is row["kv_cache_gb"] is None


def test_files_without_end_are_left_out_by_name(tmp_path, monkeypatch, capsys):
    (path,) = write(tmp_path, a=full_results([0.5]))
    os.mkfifo(tmp_path / "b_full.json")
    os.symlink("c_full.json", tmp_path / "c_full.json")
    os.symlink("/dev/zero", tmp_path / "d_full.json")
    monkeypatch.setattr(load_results, "MAX_BYTES", 100_000)
    (tmp_path / "e_full.json.gz").write_bytes(gzip.compress(b" " * 200_000))
    assert [found for found, _ in load_results.find([tmp_path])] == [path]
    notes = capsys.readouterr().err
    for name, problem in (
        ("b_full.json", "is no file but a pipe"),
        ("c_full.json", "cannot be read: Too many levels of symbolic links"),
        ("d_full.json", "is no file but a pipe or the like"),
        ("e_full.json.gz", "is larger than"),
    ):
        assert f"{name} {problem}" in notes


def test_find_takes_what_is_there_and_names_the_rest_once(tmp_path, capsys):
    (tmp_path / "deep/er").mkdir(parents=True)
    write(tmp_path / "deep/er", b=full_results([0.5]))
    write(tmp_path, a=full_results([0.5]))
    (tmp_path / "half_full.json").write_text('{"run_meta"')
    for number in range(7):
        (tmp_path / f"other{number}.json").write_text("{}")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "a.jsonl").write_text("{}")
    os.symlink("nowhere", tmp_path / "dangling.json")
    found = list(load_results.find([tmp_path, tmp_path / "deep", tmp_path / "a_full.json"]))
    assert [path.name for path, _ in found] == ["a_full.json", "b_full.json"]
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2
    assert "half_full.json is not whole JSON" in notes[0]
    assert notes[1].startswith("note: left out, no full results: ")
    assert notes[1].endswith("other4.json and 2 more")


def test_a_file_that_may_not_be_read_is_left_out(tmp_path, capsys, monkeypatch):
    def refused(path, flags):
        raise PermissionError(13, "Permission denied", path)  # root may read everything

    write(tmp_path, a=full_results([0.5]))
    monkeypatch.setattr(load_results, "_open_at_once", refused)
    assert list(load_results.find([tmp_path])) == []
    assert "cannot be read: Permission denied" in capsys.readouterr().err
