"""Whole runs of `narrativeqa_eval.py` on a tiny model: results, resume, bad settings."""

import json
import signal
import sys
import time
import traceback

import pytest
from transformers import LlamaForCausalLM

import longbench_kv_eval
import narrativeqa_eval
from longctx import cli, config, models, requests, results, run_metadata, runner, tables
from tests.runs import ROOT, environ, fork, run, without_timings

pytestmark = pytest.mark.model


def test_results_have_every_fixed_key(tiny_folder, tmp_path):
    full = run(tiny_folder, tmp_path, BATCH_SIZE="2", KV_MODE="l2", PRUNE_AFTER="100")
    assert set(full) == {"run_meta", "ctx_summaries", "rows", "summary"}
    run_id = full["run_meta"]["run_id"]
    assert run_id.startswith("tiny-llama_sdpa_synthetic_N5_B2_KVl2_Qnone_")
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
            assert sample["question"].endswith("?")
            assert "prompt" not in sample
            assert 0 <= sample["answer_depth"] <= 1
    variables = on_disk["run_meta"]["variables"]
    assert variables["KEEP_RATIO"] == 0.7
    assert variables["L2_KEEP"] == "low"
    assert on_disk["run_meta"]["versions"]["torch"]
    nothing = {"n_missing": 0, "n_unexpected": 0, "unexpected": []}
    assert on_disk["run_meta"]["loading"] == nothing
    assert "KV_MODE=l2" in on_disk["run_meta"]["command"]


@pytest.mark.parametrize(
    ("changes", "adjusted"),
    [
        ({"ATTN_IMPL": None}, {"ATTN_IMPL": "sdpa"}),
        ({"ANSWER_MODE": "loglikelihood", "MAX_NEW_TOKENS": "7"}, {"MAX_NEW_TOKENS": 1}),
        ({"KV_MODE": "l2", "L2_KEEP": "high", "SKIP_LAYERS": ""}, {}),
    ],
)
def test_what_a_run_adjusts_is_in_its_variables_fingerprint_and_command(
    tiny_folder, tmp_path, changes, adjusted
):
    task = longbench_kv_eval.TASK
    settings, environment = config.read(task.settings, environ(tiny_folder, tmp_path, **changes))
    made = runner.Run(task, settings, environment)
    meta, variables = made.meta, environment.values(settings) | adjusted
    assert meta["variables"] == variables
    figures = {v.name: variables[v.name] for v in environment.declared if v.changes_results}
    assert "LOGDIR" not in figures
    values = {
        "task": "longbench_kv",
        **figures,
        "model": models.fingerprint(made.source),
        "prompt_frame": made.builder.frame,
        "code": run_metadata.code_fingerprint(),
        "versions": meta["versions"],
        "device": [meta["device"]["type"], meta["device"]["name"]],
    }
    assert meta["fingerprint"] == results.fingerprint(values, meta["data_fingerprint"])
    for name in adjusted.keys() & environment.is_set:
        assert f" {name}={adjusted[name]} " in meta["command"]


def test_few_calls_lie_between_the_command_and_the_forward_of_the_prefill(
    tiny_folder, tmp_path, monkeypatch
):
    def forward(*arguments, **options):
        own = (str(ROOT / "longctx"), str(ROOT / "kv_compression"))
        paths.append([f.name for f in traceback.extract_stack() if f.filename.startswith(own)])
        return real(*arguments, **options)

    paths, real = [], LlamaForCausalLM.forward
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    monkeypatch.setattr(sys, "argv", ["narrativeqa_eval.py"])
    changes = {"N_SAMPLES": "1", "CONTEXTS": "200", "MAX_NEW_TOKENS": "1"}
    cli.main(narrativeqa_eval.TASK, "", environ(tiny_folder, tmp_path, **changes))
    # Before these, the checks run a model too.
    assert 2 < max(len(path) for path in paths if path[1] == "execute") <= 7


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


def table_keys(full):
    return {path[0] for _, path, _ in tables.lines_of([full])}


def test_the_question_is_read_against_the_pruned_context(tiny_folder, tmp_path):
    settings = {"KV_MODE": "l2", "KEEP_TOKENS": "50", "PRUNE_AFTER": "0", "SKIP_LAYERS": ""}
    whole = run(tiny_folder, tmp_path, CONTEXTS="300", **settings)
    context = run(tiny_folder, tmp_path, CONTEXTS="300", KV_SCOPE="context", **settings)
    assert whole["ctx_summaries"][0]["first_token_before_pruning"] is True
    assert context["ctx_summaries"][0]["first_token_before_pruning"] is False
    for row in whole["rows"]:
        assert row["stored_tokens_per_layer"] == [50] * 3
        assert row["document_ms"] is row["question_ttft_ms"] is None
    assert "question_ttft_ms_p50" not in table_keys(whole)
    assert "question_ttft_ms_p50" in table_keys(context)
    for row in context["rows"]:
        parts = row["document_ms"], row["question_ttft_ms"]
        assert min(parts) > 0
        assert sum(parts) == pytest.approx(row["ttft_ms"], rel=1e-3)
        assert row["setup_ms"] > 0
        # What follows the document, about forty tokens, is kept whole.
        assert 65 < row["stored_tokens_per_layer"][0] < 110


def test_a_quantized_cache_takes_less_and_a_long_answer_stays_within_its_budget(
    tiny_folder, tmp_path, capsys
):
    settings = {"CONTEXTS": "300", "N_SAMPLES": "2", "BATCH_SIZE": "2"}
    whole = run(tiny_folder, tmp_path, **settings)["ctx_summaries"][0]
    small = run(tiny_folder, tmp_path, KV_QUANT="int8", **settings)["ctx_summaries"][0]
    pruning = {"KV_MODE": "keydiff", "KEEP_TOKENS": "60", "PRUNE_AFTER": "0", "SKIP_LAYERS": ""}
    both = run(tiny_folder, tmp_path, KV_QUANT="int4", **pruning, **settings)["ctx_summaries"][0]
    assert small["kv_cache_gb"] < 0.4 * whole["kv_cache_gb"]
    assert both["kv_cache_gb"] < 0.06 * whole["kv_cache_gb"]
    capsys.readouterr()
    again = run(tiny_folder, tmp_path, PRUNE_EVERY="4", MAX_NEW_TOKENS="30", **pruning, **settings)
    assert again["rows"][0]["stored_tokens_per_layer"] == [60] * 3
    assert again["run_meta"]["variables"]["PRUNE_EVERY"] == 4


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
    (nothing,) = skipped["ctx_summaries"]
    assert (nothing["total_count"], nothing["n_asked"], nothing["n_left_out"]) == (0, 2, 2)


@pytest.mark.timeout(180)
def test_a_killed_run_resumes_to_the_results_of_an_unbroken_one(tiny_folder, tmp_path):
    settings = {"N_SAMPLES": "15", "MAX_NEW_TOKENS": "20"}
    unbroken = run(tiny_folder, tmp_path / "unbroken", **settings)
    broken = tmp_path / "broken"
    process = fork(tiny_folder, broken, **settings)
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


def test_out_of_memory_is_a_result(tiny_folder, tmp_path, monkeypatch, capsys):
    import torch

    def generate(model, input_ids, *arguments, **options):
        if input_ids.shape[1] > 250:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB")
        return real(model, input_ids, *arguments, **options)

    real = requests.generate
    monkeypatch.setattr(requests, "generate", generate)
    full = run(tiny_folder, tmp_path, CONTEXTS="300,200")
    failed, good = full["ctx_summaries"]
    assert failed["n_oom"] == failed["n_failed"] == failed["n_requests"] == 1
    assert failed["ttft_ms_p50"] is None
    assert good["n_failed"] == 0
    assert full["rows"][0]["error"].startswith("OutOfMemoryError: CUDA out of memory")
    assert "out of memory" in capsys.readouterr().out
