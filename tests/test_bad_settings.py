"""A setting that cannot be used is one line and exit code 2, before any model is loaded."""

import os
import re
import subprocess
import sys

import pytest

import narrativeqa_eval
from longctx import cli, config, models
from longctx.errors import SettingError
from tests.runs import ROOT, environ, run

pytestmark = pytest.mark.model

BAD_SETTINGS = [
    ({"ATTN_IMPL": "flash3"}, "choose one of eager, flash2, flex, sdpa"),
    ({"ATTN_IMPL": "flash2", "DEVICE_MAP": "cpu"}, "flash2 needs a CUDA GPU"),
    ({"KV_MODE": "L2"}, "did you mean l2?"),
    ({"KV_MODE": "l2", "KEEP_RATIO": "0"}, "greater than 0"),
    ({"KV_MODE": "l2", "KEEP_RATIO": "1.5"}, "less than or equal to 1"),
    ({"KV_MODE": "l2", "KEEP_RATIO": "half"}, "valid number"),
    ({"KV_MODE": "l2", "KEEP_RATIO": "nan"}, "should be"),
    ({"KV_MODE": "l2", "SKIP_LAYERS": "0,99"}, "no layer 99"),
    ({"KV_MODE": "l2", "SKIP_LAYERS": "first"}, "valid integer"),
    ({"KV_MODE": "l2", "PRUNE_AFTER": "-1"}, "greater than or equal to 0"),
    ({"KV_MODE": "l2", "L2_KEEP": "middle"}, "choose one of low, high"),
    ({"KV_SCOPE": "everything"}, "choose one of prompt, context"),
    ({"KV_MODE": "l2", "KEEP_RATIO": "0.5", "KEEP_TOKENS": "9"}, "excludes KEEP_RATIO"),
    ({"KV_MODE": "l2", "PRUNE_EVERY": "9", "KV_QUANT": "int8"}, "excludes KV_QUANT=int8"),
    ({"PRUNE_EVERY": "0"}, "greater than or equal to 1"),
    ({"KV_QUANT": "int3"}, "did you mean int8"),
    ({"KV_MODE": "expected_attention", "EXPECTED_FUTURE": "0"}, "must be 1 or more"),
    ({"KEEP_TOKENS": "0"}, "greater than or equal to 1"),
    ({"KV_MODE": "snapkv", "SNAPKV_KERNEL": "4"}, "must be odd"),
    ({"N_SAMPLES": "0"}, "greater than or equal to 1"),
    ({"N_SAMPLES": "ten"}, "valid integer"),
    ({"BATCH_SIZE": "1.5"}, "valid integer"),
    ({"BATCH_SIZE": ""}, "is empty"),
    ({"CONTEXTS": "2048,,4096"}, "valid integer"),
    ({"CONTEXTS": "256,256"}, "names a value twice"),
    ({"CONTEXTS": ""}, "at least 1 item"),
    ({"CONTEXTS": "20"}, "instructions and question alone take"),
    ({"QUANT_MODE": "int3"}, "choose one of bnb4, bnb8, none"),
    ({"QUANT_MODE": "bnb4", "BNB_4BIT_TYPE": "nf3"}, "choose one of nf4, fp4"),
    ({"QUANT_MODE": "bnb8", "LLM_INT8_THRESHOLD": "-2"}, "0 or more"),
    ({"PREFILL": "layers"}, "did you mean layered?"),
    ({"PREFILL": "layered", "PREFILL_CHUNK": "0"}, "greater than or equal to 1"),
    ({"DTYPE": "float8"}, "choose one of bfloat16, float16, float32"),
    ({"DEVICE_MAP": "cuda:0"}, "no CUDA GPU here"),
    ({"DEVICE_MAP": "meta"}, "choose one of auto, balanced"),
    ({"DEVICE_MAP": "disk"}, "choose one of auto, balanced"),
    ({"DEVICE_MAP": "cuda:x"}, "choose one of auto, balanced"),
    ({"N_SAMPLES": "1000000000000"}, "less than or equal to 10000000"),
    ({"CONTEXTS": "1000000000000"}, "less than or equal to 10000000"),
    ({"MAX_NEW_TOKENS": "1000000000000"}, "less than or equal to 10000000"),
    ({"BATCH_SIZE": "1000000000000"}, "less than or equal to 10000000"),
    ({"ENABLE_THINKING": "yes"}, "choose one of auto, on, off"),
    ({"MODEL_ID": "no/such-model-anywhere"}, "hub cannot be reached or does not have it"),
    ({"MODEL_ID": "random/gpt-9"}, "the shapes are mistral-7b, llama-3-8b"),
    ({"DATASET_ID": "missing.jsonl"}, "no such file"),
    ({"DATASET_ID": str(ROOT / "pyproject.toml") + ".json"}, "no such file"),
    ({"TRUNCATE": "end"}, "choose one of middle, head, tail, skip"),
    ({"CHAT_TEMPLATE": "maybe"}, "choose one of auto, on, off"),
    ({"RESUME": "perhaps"}, "valid boolean"),
    ({"LOGDIR": "/dev/null/logs"}, "cannot be written"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SETTINGS)
def test_a_bad_setting_is_one_line_and_exit_code_2(
    tiny_folder, tmp_path, monkeypatch, capsys, changes, message
):
    if changes.get("DEVICE_MAP", "").startswith("cuda"):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["narrativeqa_eval.py"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit) as stop:
        cli.main(narrativeqa_eval.TASK, "", environ(tiny_folder, tmp_path / "logs", **changes))
    assert stop.value.code == 2
    errors = [s for s in capsys.readouterr().err.splitlines() if s.startswith("error: ")]
    assert len(errors) == 1
    variable = list(changes)[-1] if "DEVICE_MAP" not in changes else ""
    assert message in errors[0]
    assert variable in errors[0]


def test_missing_bitsandbytes_and_schema_errors(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingError, match="QUANT_MODE=bnb4: needs the package bitsandbytes"):
        run(tiny_folder, tmp_path, QUANT_MODE="bnb4")
    monkeypatch.undo()
    path = tmp_path / "wrong.jsonl"
    path.write_text('{"question": "a string"}\n')
    with pytest.raises(SettingError, match="record 0 is not of narrativeqa's schema"):
        run(tiny_folder, tmp_path, DATASET_ID=str(path))
    path.write_text("{not json\n")
    with pytest.raises(SettingError, match="cannot be read"):
        run(tiny_folder, tmp_path, DATASET_ID=str(path))


def test_all_wrong_and_misspelt_settings_are_told_at_once(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["narrativeqa_eval.py"])
    with pytest.raises(SystemExit) as stop:
        cli.main(narrativeqa_eval.TASK, "", {"KEEP_RATO": "1", "KV_MODE": "l3", "N_SAMPLES": "x"})
    assert stop.value.code == 2
    note, *errors = capsys.readouterr().err.splitlines()
    assert note == "note: KEEP_RATO is not a setting; did you mean KEEP_RATIO?"
    assert [error.split(":")[1] for error in errors] == [" N_SAMPLES=x", " KV_MODE=l3"]


# What takes seconds to import, and no command line needs.
HEAVY = "torch transformers scipy datasets nltk"
IN_A_PROCESS = f"""
import contextlib, io, runpy, sys
for module, *argv in [
    ["narrativeqa_eval"], ["narrativeqa_eval", "--help"], ["longbench_kv_eval", "--help"],
    ["hotpotqa_eval", "--help"], ["ruler_eval", "--help"],
    ["flex_pipeline.hotpot_qa_flex", "--help"], ["flex_pipeline.benchmark_cmd", "--help"],
    ["longctx.sweep", "--help"],
    ["longctx.sweep", "narrativeqa_eval.py", "KV_MODE=l2,l3"], ["longctx.compare", "--help"],
    ["longctx.report", "--help"], ["context_histograms.count_tokens", "--help"],
    ["context_histograms.plot_narrativeqa_tokens", "--help"],
]:
    sys.argv = [module, *argv]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            code = stop.code
    print(module, *argv, code, max(map(len, out.getvalue().splitlines()), default=0))
    print(*(name for name in {HEAVY.split()} if name in sys.modules))
"""


def test_help_and_wrong_settings_need_no_torch():
    """One process for all: an import that one of them makes stays for the next."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS],
        cwd=ROOT,
        env=os.environ | {"KV_MODE": "l3", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "error: KV_MODE=l3: choose one of none, " in done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines[1::2] if line] == []
    for line in lines[::2]:
        command, code, width = line.rsplit(maxsplit=2)
        assert int(code) == (0 if command.endswith("--help") else 2), command
        assert int(width) <= 80, command


def test_a_script_helps(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["narrativeqa_eval.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        cli.main(narrativeqa_eval.TASK, narrativeqa_eval.__doc__)
    assert stop.value.code == 0
    helped = capsys.readouterr().out
    for group in config.GROUPS:
        assert f"\n {group}:\n" in helped
    assert "KEEP_RATIO" in helped
    assert re.search(r"BNB_4BIT_TYPE .*\[default nf4\]", " ".join(helped.split()))
    examples = helped.replace("\\\n", "").split(" examples:\n")[1].split("\n\n")[0]
    for line in examples.splitlines():
        pairs = dict(word.split("=") for word in line.split() if "=" in word)
        assert config.read(narrativeqa_eval.TASK.settings, pairs)[1].is_set == set(pairs)
