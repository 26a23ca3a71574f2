"""HotpotQA under FlexAttention's masks: settings, refusals, and what the results say of blocks."""

import runpy
from pathlib import Path

import pytest

from flex_pipeline import hotpot_qa_flex, masks, patching
from flex_pipeline.hotpot_qa_flex import TASK, attention
from longctx import config, runner
from longctx.errors import SettingError

ROOT = Path(__file__).parents[1]


def environ(tiny_folder, logdir, **changes):
    return {
        "MODEL_ID": str(tiny_folder),
        "DATASET_ID": "synthetic",
        "DTYPE": "float32",
        "N_SAMPLES": "3",
        "CONTEXTS": "400,600",
        "MAX_NEW_TOKENS": "4",
        "WANDB_MODE": "disabled",
        "LOGDIR": str(logdir),
    } | changes


def settings_of(**variables):
    return config.read(TASK.settings, variables)[0]


def test_the_fixed_import_is_there(monkeypatch):
    monkeypatch.setattr(patching, "enable_flex_attention_dense_causal", lambda model: [model])
    assert hotpot_qa_flex.enable_flex_attention_dense_causal("model") == ["model"]


@pytest.mark.parametrize("name", sorted(masks.FACTORIES))
def test_every_mask_can_be_chosen_and_its_sizes_set(name, capsys):
    sizes = {"window": 7, "sinks": 3, "prefix": 5, "dilation": 2}
    variables = {f"MASK_{size.upper()}": str(value) for size, value in sizes.items()}
    chosen = attention(settings_of(MASK_TYPE=name, **variables)).mask
    expected = masks.FACTORIES[name](**{size: sizes[size] for size in masks.parameters(name)})
    for query in range(30):
        for key in range(30):
            pair = masks.Span(query, query), masks.Span(key, key)
            assert bool(chosen.covers(*pair)) == bool(expected.covers(*pair))
    unused = [size for size in sizes if size not in masks.parameters(name)]
    assert sorted(capsys.readouterr().err.splitlines()) == sorted(
        f"note: MASK_{size.upper()} has no effect with MASK_TYPE={name}" for size in unused
    )


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"KV_MODE": "l2"}, "KV_MODE=l2"),
        ({"KV_SCOPE": "context"}, "KV_SCOPE=context"),
        ({"ATTN_IMPL": "sdpa"}, "ATTN_IMPL=sdpa"),
        ({"MASK_TYPE": "slidingwindow"}, "did you mean sliding_window"),
        ({"MASK_WINDOW": "0"}, "MASK_WINDOW=0"),
    ],
)
def test_what_cannot_be_used_is_refused(variables, problem):
    with pytest.raises(SettingError, match=problem):
        attention(settings_of(**variables))


@pytest.mark.model
def test_results_hold_the_blocks_skipped_and_quality(tiny_folder, tmp_path):
    def run(**changes):
        variables = environ(tiny_folder, tmp_path, **changes)
        return runner.Run(TASK, *config.read(TASK.settings, variables)).execute()

    causal = run()
    sparse = run(MASK_TYPE="sliding_window", MASK_WINDOW="64", BATCH_SIZE="2")
    for full, skips in ((causal, False), (sparse, True)):
        for row in full["rows"]:
            assert (row["block_sparsity_pct"] > 0) == skips
            assert row["kernel_prefill"] == "flex (not compiled)"
        for summary in full["ctx_summaries"]:
            assert (summary["block_sparsity_pct"] > 0) == skips
            assert 0 <= summary["em"] <= summary["f1"] <= 1
            assert summary["attn"] == "flex"
    assert sparse["run_meta"]["variables"]["MASK_WINDOW"] == 64
    assert sparse["run_meta"]["command"].endswith("python flex_pipeline/hotpot_qa_flex.py")

    # Dense causal FlexAttention answers as sdpa does.
    import hotpotqa_eval

    variables = environ(tiny_folder, tmp_path, ATTN_IMPL="sdpa")
    task = hotpotqa_eval.TASK
    sdpa = runner.Run(task, *config.read(task.settings, variables)).execute()

    def outputs(full):
        return [s["output"] for row in full["rows"] for s in row["samples"]]

    assert outputs(causal) == outputs(sdpa)
    assert sdpa["ctx_summaries"][0]["block_sparsity_pct"] is None


@pytest.mark.parametrize("folder", ["", "flex_pipeline"])
def test_logs_go_into_the_folder_of_the_pipeline_from_wherever_it_is_started(monkeypatch, folder):
    monkeypatch.chdir(ROOT / folder)
    names = runpy.run_path(str(ROOT / "flex_pipeline" / "hotpot_qa_flex.py"))
    logdir = Path(names["HotpotQAFlexSettings"]().logdir)
    assert not logdir.is_absolute()
    assert logdir.resolve() == ROOT / "flex_pipeline" / "logs"
