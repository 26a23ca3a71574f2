import re
from pathlib import Path

import pytest

import hotpotqa_eval
import longbench_kv_eval
import narrativeqa_eval
from longctx import config
from longctx.errors import SettingError
from longctx.settings import Settings
from tests.scripts import SCRIPTS

ROOT = Path(__file__).parents[1]


def test_defaults_are_those_of_the_design():
    settings, environment = config.read(narrativeqa_eval.TASK.settings, {})
    assert settings.model_id == "mistralai/Mistral-7B-Instruct-v0.3"
    assert settings.attn_impl == "flash2"
    assert settings.contexts == (2048, 4096, 8192, 16384, 32768)
    assert (settings.keep_ratio, settings.prune_after, settings.skip_layers) == (0.7, 512, (0, 1))
    assert settings.dataset_id == "deepmind/narrativeqa"
    assert environment.method(settings.kv_mode) is None


def test_values_are_parsed():
    settings, environment = config.read(
        narrativeqa_eval.TASK.settings,
        {
            "CONTEXTS": " 512, 1024 ",
            "SKIP_LAYERS": "",
            "USE_SUMMARY": "True",
            "KV_MODE": "l2",
            "L2_KEEP": "high",
        },
    )
    assert settings.contexts == (512, 1024)
    assert settings.skip_layers == ()
    assert settings.use_summary is True
    assert environment.method("l2").keep == "high"


def test_misspelt_and_idle_variables_are_noted(capsys):
    config.read(
        Settings, {"KEEP_RATO": "1", "KEEP_RATIO": "0.5", "L2_KEEP": "low", "BNB_4BIT_TYPE": "fp4"}
    )
    assert capsys.readouterr().err.splitlines() == [
        "note: KEEP_RATO is not a setting; did you mean KEEP_RATIO?",
        "note: KEEP_RATIO has no effect with KV_MODE=none",
        "note: L2_KEEP has no effect with KV_MODE=none",
        "note: BNB_4BIT_TYPE has no effect with QUANT_MODE=none",
    ]


def test_ordinary_variables_are_not_taken_for_misspelt_ones(capsys):
    config.read(Settings, dict.fromkeys(["HOME", "PATH", "MODEL", "LOG_DIRECTORY"], "x"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["longctx", "kv_compression", "context_histograms"])
def test_the_environment_is_read_in_one_place(name):
    readers = [
        path.name
        for path in (ROOT / name).rglob("*.py")
        if re.search(r"os\.environ|getenv", path.read_text())
    ]
    assert readers == (["config.py"] if name == "longctx" else [])


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_every_variable_is_declared_once(script):
    names = [known.name for known in config.variables(script.TASK.settings)]
    assert len(names) == len(set(names))


def test_scripts_are_found_and_short():
    assert {"narrativeqa_eval", "longbench_kv_eval", "hotpotqa_eval", "ruler_eval"} == set(SCRIPTS)
    for script in SCRIPTS.values():
        assert len(Path(script.__file__).read_text().splitlines()) < 160


def test_defaults_of_the_other_scripts():
    longbench, _ = config.read(longbench_kv_eval.TASK.settings, {})
    assert (longbench.dataset_id, longbench.split) == ("zai-org/LongBench-v2", "train")
    assert (longbench.max_new_tokens, longbench.answer_mode) == (128, "generate")
    hotpotqa, _ = config.read(hotpotqa_eval.TASK.settings, {})
    assert hotpotqa.contexts == (512, 2048, 8192)
    assert (hotpotqa.dataset_id, hotpotqa.dataset_config) == ("hotpotqa/hotpot_qa", "distractor")
    assert (hotpotqa.split, hotpotqa.max_new_tokens) == ("validation", 32)


@pytest.mark.parametrize("name", ["contexts", "max_new_tokens"])
def test_a_scripts_own_default_is_still_checked(name):
    with pytest.raises(SettingError, match="greater than or equal to 1"):
        config.read(hotpotqa_eval.TASK.settings, {name.upper(): "0"})
