"""What models, data sets and folders of others bring along: code, pickles, hostile text, links."""

import json
import os
import re
import shutil
import stat
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import is_env_variable_true

import hotpotqa_eval
from longctx import cli, console, requests, results, run_metadata
from longctx.errors import SettingError
from longctx.run_files import RunFiles
from longctx.settings import Settings
from tests.runs import environ, run

# What each does to a terminal that gets it raw, and the part that must not get through.
HOSTILE = {
    "clears the screen": ("\x1b[2J\x1b[1;1H", "\x1b[2J"),
    "sets the title": ("\x1b]0;evil\x07", "\x1b]0"),
    "hides an address behind a link": ("\x1b]8;;http://evil\x1b\\safe\x1b]8;;\x1b\\", "\x1b]8"),
    "fills the clipboard": ("\x1b]52;c;ZXZpbA==\x07", "\x1b]52"),
    "in 8-bit control characters": ("\x9b2J\x9d0;evil\x9c", "\x9b"),
    "overwrites the line": ("wrong\rright\x08\x08", "\r"),
    "ends a C string": ("a\0b", "\0"),
    "rubs out": ("a\x7fb", "\x7f"),
    "turns the direction": ("\u202egnorw\u2066x\u2069", "\u202e"),
    "hides tags": ("a\U000e0041\U000e0042b", "\U000e0041"),
    "separates lines": ("a\u2028error: forged\u0085b", "\u2028"),
    "closes markup": ("[/red][bold]x[/bold][link=http://evil]y[/link][/]", "\x1b]8"),
    "opens markup": ("[on red blink]\\[a\\", "\x1b[5"),
    "is long": ("x" * 100_000, "x" * 500),
    "combines without end": ("e" + "\u0301" * 5_000 + "\u200b\u200d\ufeff", "\u0301" * 500),
}
LONE_SURROGATES = ("a\ud83d\udc00b\udcff", "\udcff")  # from a model alone: no file can hold them

pytestmark = pytest.mark.model


def hotpotqa_file(path, text):
    """One record with `text` in each of its fields."""
    record = {
        "id": f"{text}1", "question": f"{text}?", "answer": text, "type": f"bridge{text}",
        "supporting_facts": {"title": [text], "sent_id": [0]},
        "context": {"title": [text[:200]], "sentences": [[text[:200], "And so on. "]]},
    }  # fmt: skip
    path.write_text(json.dumps(record) + "\n")
    return str(path)


@pytest.fixture
def at_a_terminal(monkeypatch):
    """Tables, colours and progress bars as a person sees them."""
    for known in (console.stdout, console.stderr):
        monkeypatch.setattr(known, "_force_terminal", True)
        monkeypatch.setattr(known, "_color_system", console.stdout._detect_color_system())


@pytest.mark.parametrize(
    ("text", "forbidden"), [*HOSTILE.values(), LONE_SURROGATES], ids=[*HOSTILE, "lone surrogates"]
)
def test_hostile_text_steers_no_terminal_in_a_whole_run(
    tiny_folder, tmp_path, monkeypatch, capsys, at_a_terminal, text, forbidden
):
    monkeypatch.setattr("longctx.thinking.texts_of", lambda _, rows: [text for _ in rows])
    given = "plain" if text == LONE_SURROGATES[0] else text
    path = hotpotqa_file(tmp_path / "data.jsonl", given[:1000])
    settings = {"DATASET_ID": path, "CONTEXTS": "3000", "MAX_NEW_TOKENS": "2", "WARMUP": "0"}
    full = run(tiny_folder, tmp_path / "logs", hotpotqa_eval, **settings)
    assert full["rows"][0]["samples"][0]["output"] == text
    printed, errors = capsys.readouterr()
    assert "3,000" in printed
    # A progress bar moves the cursor of its own, in its own ways.
    if forbidden == "\r":
        errors = ""
        printed = printed.replace("\r\n", "\n")
    assert forbidden not in printed + errors
    (written,) = (tmp_path / "logs").glob("*_full.json")
    assert re.fullmatch(rb"[\x20-\x7e\n]*", written.read_bytes())


@pytest.mark.parametrize("name", ["clears the screen", "fills the clipboard", "closes markup"])
def test_hostile_errors_and_settings_steer_no_terminal(
    tiny_folder, tmp_path, monkeypatch, capsys, name
):
    text = HOSTILE[name][0]

    def fail(*_, **__):
        raise ValueError(text)

    monkeypatch.setattr(requests, "generate", fail)
    full = run(tiny_folder, tmp_path, N_SAMPLES="2", BATCH_SIZE="2", CONTEXTS="200")
    assert [row["error"] for row in full["rows"]] == [f"ValueError: {text}"] * 2
    monkeypatch.setattr(sys, "argv", ["hotpotqa_eval.py"])
    for variable in ("DATASET_ID", "MODEL_ID", "KV_MODE"):
        values = environ(tiny_folder, tmp_path, **{variable: f"{text}.jsonl"})
        with pytest.raises(SystemExit) as stop:
            cli.main(hotpotqa_eval.TASK, "", values)
        assert stop.value.code == 2
    printed, errors = capsys.readouterr()
    assert errors.count("error: ") == 3
    assert "\x1b" not in printed + errors
    assert "\x07" not in printed + errors


EVIL_CODE = """
from pathlib import Path
from transformers import LlamaConfig

Path({marker!r}).write_text("ran")

class EvilConfig(LlamaConfig):
    model_type = "evil"
"""


def test_code_of_a_model_runs_only_when_trusted_and_after_saying_so(
    tiny_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    folder, marker = tmp_path / "evil", tmp_path / "marker"
    shutil.copytree(tiny_folder, folder)
    (folder / "configuration_evil.py").write_text(EVIL_CODE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "configuration_evil.EvilConfig"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingError, match="comes with it: read it, then set TRUST_REMOTE_CODE=1"):
        run(folder, tmp_path / "logs")
    assert not marker.exists()
    assert "TRUST_REMOTE_CODE" not in capsys.readouterr().err
    said = []
    monkeypatch.setattr("longctx.models.notice", lambda text: said.append((text, marker.exists())))
    with pytest.raises(SettingError):  # no model class knows its config
        run(folder, tmp_path / "logs", TRUST_REMOTE_CODE="1")
    assert marker.read_text() == "ran"
    text, had_run = said[0]
    assert "TRUST_REMOTE_CODE is on: Python code" in text
    assert not had_run


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_pickled_weights_are_read_only_when_asked_for_and_call_nothing(
    tiny_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    folder, settings = tmp_path / "pickled", {"CONTEXTS": "200", "N_SAMPLES": "1"}
    shutil.copytree(tiny_folder, folder)
    weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(SettingError, match="has no weights as safetensors; USE_SAFETENSORS=false"):
        run(folder, tmp_path, **settings)
    assert not list(tmp_path.glob("*.json*"))
    assert "USE_SAFETENSORS" not in capsys.readouterr().err
    # Else transformers has weights converted by others, and loads what they propose.
    assert is_env_variable_true("DISABLE_SAFETENSORS_CONVERSION")
    pickled = run(folder, tmp_path, USE_SAFETENSORS="false", **settings)
    assert "USE_SAFETENSORS is off: pickled weights of" in capsys.readouterr().err
    known = run(tiny_folder, tmp_path, USE_SAFETENSORS="false", **settings)
    outputs = [full["rows"][0]["samples"][0]["output"] for full in (pickled, known)]
    assert outputs[0] == outputs[1]
    marker = tmp_path / "marker"
    torch.save(weights | {"lm_head.weight": Payload(str(marker))}, folder / "pytorch_model.bin")
    with pytest.raises(SettingError, match="cannot be loaded from this folder"):
        run(folder, tmp_path, USE_SAFETENSORS="false", **settings)
    assert not marker.exists()


def test_torn_safetensors_are_one_line(tiny_folder, tmp_path):
    folder = tmp_path / "torn"
    shutil.copytree(tiny_folder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SettingError, match="cannot be loaded from this folder") as caught:
        run(folder, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_results_are_readable_for_whom_the_umask_allows(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        files = RunFiles.start(tmp_path, {"run_id": "run"})
        files.write_summaries([{"context_tokens": 1}])
        paths = [files.journal, files.summaries_path]
        assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [mode] * 2
    finally:
        os.umask(before)


def test_links_in_the_folder_are_not_written_through(tmp_path):
    precious, logs = tmp_path / "precious", tmp_path / "logs"
    precious.write_text("precious")
    logs.mkdir()
    (logs / "run_rows.jsonl").symlink_to(tmp_path / "not-there")
    files = RunFiles.start(logs, {"run_id": "run"})
    assert files.meta["run_id"] == "run-2"
    assert not (tmp_path / "not-there").exists()
    files.summaries_path.symlink_to(precious)
    files.full_path.symlink_to(precious)
    files.write_summaries([{"context_tokens": 1}])
    files.finish([], [], {})
    assert precious.read_text() == "precious"
    assert not files.full_path.is_symlink()


@pytest.mark.parametrize("model", ["x" * 300, "../" * 90 + "etc", "日本" * 100])
def test_long_names_fit_a_file_name(tmp_path, model):
    name = run_metadata.run_id(
        Settings(dataset_id=model, keep_tokens=10**7, kv_mode="l2" * 20), model, 1
    )
    results.write_whole(tmp_path / f"{name}_full.json", "{}")
    assert [path.parent for path in tmp_path.rglob("*_full.json")] == [tmp_path]
