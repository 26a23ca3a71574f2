"""Whole runs of `narrativeqa_eval.py` on a tiny model: results, resume, bad settings."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import narrativeqa_eval
from longctx import config, runner
from longctx.config import SettingError

ROOT = Path(__file__).parents[1]
TIMINGS = ("_ms", "_per_s", "ms_per_token", "load_s", "wall_s", "run_id", "latency")

pytestmark = pytest.mark.model


def environ(tiny_folder, logdir, **changes):
    settings = {
        "MODEL_ID": str(tiny_folder),
        "DATASET_ID": "synthetic",
        "ATTN_IMPL": "sdpa",
        "DTYPE": "float32",
        "N_SAMPLES": "5",
        "CONTEXTS": "200,300",
        "MAX_NEW_TOKENS": "6",
        "WANDB_MODE": "disabled",
        "CHAT_TEMPLATE": "off",
        "LOGDIR": str(logdir),
    } | changes
    return {name: value for name, value in settings.items() if value is not None}


def run(tiny_folder, logdir, **changes):
    settings, environment = config.read(
        narrativeqa_eval.TASK.settings, environ(tiny_folder, logdir, **changes)
    )
    return runner.Run(narrativeqa_eval.TASK, settings, environment).execute()


def without_timings(value):
    if isinstance(value, dict):
        return {
            key: without_timings(item)
            for key, item in value.items()
            if not any(word in key for word in TIMINGS)
        }
    if isinstance(value, list):
        return [without_timings(item) for item in value]
    return value


def test_results_have_every_fixed_key(tiny_folder, tmp_path):
    full = run(tiny_folder, tmp_path, BATCH_SIZE="2", KV_MODE="l2", PRUNE_AFTER="100")
    assert set(full) == {"run_meta", "ctx_summaries", "rows", "summary"}
    run_id = full["run_meta"]["run_id"]
    assert run_id.startswith("tiny-llama_sdpa_N5_B2_KVl2_Qnone_")
    on_disk = json.loads((tmp_path / f"{run_id}_full.json").read_text())
    lines = [json.loads(s) for s in (tmp_path / f"{run_id}.jsonl").read_text().splitlines()]
    assert on_disk["ctx_summaries"] == lines
    assert len(lines) == 2
    measures = ("latency_ms", "ttft_ms", "ms_per_token", "tok_per_s", "decode_ms")
    decode_measures = ("ms_per_token_decode", "tok_per_s_decode")
    for line in lines:
        for measure in measures + decode_measures:
            assert 0 < line[f"{measure}_p50"] <= line[f"{measure}_p95"]
        for key in ("run_id", "model", "attn", "kv_mode", "quant_mode", "context_tokens"):
            assert line[key] is not None
        assert line["peak_gpu_mem_gb_p95"] is None
        assert line["n_requests"] == 3
        assert line["total_count"] == 5
        assert 0 <= line["answered_count"] <= 5
        for score in ("meteor", "rouge1", "rougeL"):
            low, high = line[f"{score}_ci95"]
            assert low <= line[score] <= high
        assert line["first_token_before_pruning"] is True
        assert line["kernel_prefill"] == "torch flash (cpu)"
    assert len(on_disk["rows"]) == 6
    for row in on_disk["rows"]:
        assert row["success"] is True
        tokens = [sample["new_tokens"] for sample in row["samples"]]
        assert row["avg_gen_tokens"] == sum(tokens) / len(tokens)
        assert row["latency_ms_total"] == pytest.approx(row["ttft_ms"] + row["decode_ms"], rel=1e-3)
        assert row["ms_per_token"] == pytest.approx(
            row["latency_ms_total"] / row["avg_gen_tokens"], rel=1e-3
        )
        skipped, pruned = row["stored_tokens_per_layer"][0], row["stored_tokens_per_layer"][2]
        assert pruned < skipped
        for sample in row["samples"]:
            assert row["context_tokens"] - 40 <= sample["prompt_tokens"] <= row["context_tokens"]
            assert sample["dropped_tokens"] == 0
            assert 0 <= sample["answer_depth"] <= 1
    variables = on_disk["run_meta"]["variables"]
    assert variables["KEEP_RATIO"] == 0.7
    assert variables["L2_KEEP"] == "low"
    assert on_disk["run_meta"]["versions"]["torch"]
    assert "KV_MODE=l2" in on_disk["run_meta"]["command"]


def test_predictions_do_not_depend_on_the_batch_size(tiny_folder, tmp_path):
    def predictions(full):
        return {
            (row["context_tokens"], sample["sample_id"]): sample["output"]
            for row in full["rows"]
            for sample in row["samples"]
        }

    settings = {"KV_MODE": "l2", "KEEP_RATIO": "0.5", "PRUNE_AFTER": "0", "TRUNCATE": "head"}
    one = run(tiny_folder, tmp_path, **settings)
    many = run(tiny_folder, tmp_path, BATCH_SIZE="4", **settings)
    assert predictions(one) == predictions(many)


def test_the_question_is_read_against_the_pruned_context(tiny_folder, tmp_path):
    settings = {"KV_MODE": "l2", "KEEP_TOKENS": "50", "PRUNE_AFTER": "0", "SKIP_LAYERS": ""}
    whole = run(tiny_folder, tmp_path, CONTEXTS="300", **settings)
    context = run(tiny_folder, tmp_path, CONTEXTS="300", KV_SCOPE="context", **settings)
    assert whole["ctx_summaries"][0]["first_token_before_pruning"] is True
    assert context["ctx_summaries"][0]["first_token_before_pruning"] is False
    for row in whole["rows"]:
        assert row["stored_tokens_per_layer"] == [50] * 3
    for row in context["rows"]:
        # What follows the document, about forty tokens, is kept whole.
        assert 65 < row["stored_tokens_per_layer"][0] < 110


def test_random_shape_has_no_quality(tmp_path):
    full = run("random/smollm2-135m", tmp_path, N_SAMPLES="2", CONTEXTS="150", MAX_NEW_TOKENS="3")
    (summary,) = full["ctx_summaries"]
    assert summary["meteor"] is summary["answered_pct"] is None
    assert summary["ttft_ms_p50"] > 0
    # An answer has full length: speeds of two runs can be compared.
    assert [row["avg_gen_tokens"] for row in full["rows"]] == [3, 3]


@pytest.mark.parametrize("quant_mode", ["bnb8", "bnb4"])
def test_quantized_weights_on_a_cpu(tiny_folder, tmp_path, quant_mode):
    full = run(tiny_folder, tmp_path, QUANT_MODE=quant_mode, N_SAMPLES="1", CONTEXTS="150")
    assert full["rows"][0]["success"]
    plain = run(tiny_folder, tmp_path, N_SAMPLES="1", CONTEXTS="150")
    assert full["summary"]["weights_gb"] < plain["summary"]["weights_gb"]


def test_a_local_file_of_the_same_schema(tiny_folder, tmp_path):
    record = {
        "document": {"id": "d", "text": "The cat sat on the mat. " * 100, "summary": {"text": "S"}},
        "question": {"text": "Where sat the cat?"},
        "answers": [{"text": "on the mat"}, {"text": "mat"}],
    }
    for name in ("data.json", "data.jsonl"):
        path = tmp_path / name
        path.write_text(json.dumps(record) + "\n" + json.dumps(record) + "\n")
        full = run(tiny_folder, tmp_path / "logs", DATASET_ID=str(path), CONTEXTS="128")
        (summary,) = full["ctx_summaries"]
        assert summary["total_count"] == summary["n_truncated"] == 2
        assert summary["dropped_tokens_mean"] > 400
    summaries_only = run(
        tiny_folder, tmp_path / "logs", DATASET_ID=str(path), USE_SUMMARY="1", CONTEXTS="128"
    )
    assert summaries_only["ctx_summaries"][0]["n_truncated"] == 0
    skipped = run(
        tiny_folder, tmp_path / "logs", DATASET_ID=str(path), TRUNCATE="skip", CONTEXTS="128"
    )
    assert skipped["ctx_summaries"][0]["total_count"] == 0


@pytest.mark.timeout(180)
def test_a_killed_run_resumes_to_the_results_of_an_unbroken_one(tiny_folder, tmp_path):
    settings = {"N_SAMPLES": "15", "MAX_NEW_TOKENS": "20"}
    unbroken = run(tiny_folder, tmp_path / "unbroken", **settings)
    broken = tmp_path / "broken"
    process = subprocess.Popen(
        [sys.executable, "narrativeqa_eval.py"],
        cwd=ROOT,
        env=os.environ | environ(tiny_folder, broken, **settings),
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        journals = list(broken.glob("*_rows.jsonl"))
        if journals and len(journals[0].read_text().splitlines()) > 5:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL
    (journal,) = broken.glob("*_rows.jsonl")
    finished = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert 5 <= len(finished) < 30

    resumed = run(tiny_folder, broken, RESUME="1", **settings)
    assert resumed["run_meta"]["run_id"] == journal.name.removesuffix("_rows.jsonl")
    assert resumed["rows"][: len(finished)] == finished
    # Apart from timings, and from when each of the two was started.
    assert without_timings(resumed["rows"]) == without_timings(unbroken["rows"])
    assert without_timings(resumed["ctx_summaries"]) == without_timings(unbroken["ctx_summaries"])
    assert not journal.exists()


def test_resume_does_not_go_on_with_other_settings(tiny_folder, tmp_path, capsys):
    settings, environment = config.read(
        narrativeqa_eval.TASK.settings, environ(tiny_folder, tmp_path)
    )
    runner.Run(narrativeqa_eval.TASK, settings, environment)._files()
    full = run(tiny_folder, tmp_path, RESUME="1", SEED="5", CONTEXTS="200")
    assert "no unfinished run of these settings" in capsys.readouterr().err
    assert len(full["rows"]) == 5


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
    ({"DTYPE": "float8"}, "choose one of bfloat16, float16, float32"),
    ({"DEVICE_MAP": "cuda:0"}, "no CUDA GPU here"),
    ({"MODEL_ID": "no/such-model-anywhere"}, "hub cannot be reached or does not have it"),
    ({"MODEL_ID": "random/gpt-9"}, "random/mistral-7b"),
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
    if changes.get("DEVICE_MAP") == "cuda:0":
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["narrativeqa_eval.py"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(runner.models, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit) as stop:
        runner.main(narrativeqa_eval.TASK, "", environ(tiny_folder, tmp_path / "logs", **changes))
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


def test_the_process_itself_exits_with_2_and_helps():
    def script(*arguments, **variables):
        return subprocess.run(
            [sys.executable, "narrativeqa_eval.py", *arguments],
            cwd=ROOT,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    bad = script(KEEP_RATO="0.5", KV_MODE="l3")
    assert bad.returncode == 2
    assert "error: KV_MODE=l3: choose one of none, " in bad.stderr
    assert "Traceback" not in bad.stderr
    helped = script("--help")
    assert helped.returncode == 0
    assert "KEEP_RATIO" in helped.stdout
    assert "BNB_4BIT_TYPE" in helped.stdout


def test_out_of_memory_is_a_result(tiny_folder, tmp_path, monkeypatch, capsys):
    import torch

    def generate(model, input_ids, *arguments, **options):
        if input_ids.shape[1] > 250:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB")
        return real(model, input_ids, *arguments, **options)

    real = runner.generate
    monkeypatch.setattr(runner, "generate", generate)
    full = run(tiny_folder, tmp_path, CONTEXTS="300,200")
    failed, good = full["ctx_summaries"]
    assert failed["n_oom"] == failed["n_failed"] == failed["n_requests"] == 1
    assert failed["ttft_ms_p50"] is None
    assert good["n_failed"] == 0
    assert full["rows"][0]["error"].startswith("CUDA out of memory")
    assert "out of memory" in capsys.readouterr().out
