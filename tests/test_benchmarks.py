"""The benchmarks run end to end on a CPU, and what they compare with is counted right."""

import argparse
import importlib
import json
import math
import re
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import (
    _kvpress,
    _measure,
    _report,
    decode,
    decode_tokens,
    masks,
    peers,
    prefill,
    quantization,
)
from kv_compression import methods
from longctx import models
from tests.docs import ROOT
from tests.models import batch, tiny
from tests.reference import tolerance

HEAD = {"command", "model", "dtype", "device", "versions", "git_commit", "limits", "rows"}
LIMITS = ("read_gb_per_s", "copy_gb_per_s", "matmul_tflop_per_s")
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a CPU cannot do")


@pytest.fixture
def run(tiny_folder, tmp_path, monkeypatch, capsys):
    """The rows of a benchmark on the tiny model, after a look at its file and its tables."""

    def run(module, *arguments):
        path = tmp_path / "report.json"
        argv = ["x.py", f"--model={tiny_folder}", "--dtype=float32", f"--output={path}"]

        def printed(*more):
            monkeypatch.setattr(sys, "argv", [*argv, *more])
            module.main()
            return capsys.readouterr().out

        monkeypatch.setattr(_measure, "limits", lambda _: dict.fromkeys(LIMITS, 2.0))
        first = printed(*arguments)
        content = path.read_text()
        written = json.loads(content)
        assert set(written) == HEAD
        assert printed("--table") == first
        lines = module.lines(written)
        assert len(first.splitlines()) == 1 + len(lines)
        # The head, an empty line, the headings and what stands below them.
        assert len(printed("--table", "markdown").splitlines()) == 3 + len(lines)
        assert path.read_text() == content
        return written["rows"]

    return run


@NO_GPU
@pytest.mark.model
def test_decode_is_measured_against_the_bytes_of_a_step(run):
    rows = run(decode, "--batches=2", "--contexts=100", "--new-tokens=5", "--modes=eager,graph")
    assert [(row["mode"], row["keep_ratio"]) for row in rows] == [
        *(("eager", 1), ("eager", 0.25)),
        *(("graph", 1), ("graph", 0.25)),
    ]
    for row in rows[:2]:
        stored = 3 * (100 if row["keep_ratio"] == 1 else 25)
        assert row["kv_gb"] == pytest.approx(stored * 2 * 2 * 2 * 16 * 4 / 1e9, rel=1e-5)
        assert row["limit_ms"] == pytest.approx(row["step_gb"] / 2 * 1e3, rel=1e-4)
        assert row["over_limit"] == pytest.approx(row["ms_per_token"] / row["limit_ms"], rel=1e-4)
        assert row["tok_per_s"] == pytest.approx(2e3 / row["ms_per_token"], rel=1e-4)
        assert row["decode_mode"] == "eager"
        assert len(row["ms_per_token_runs"]) == 3
    for row in rows[2:]:
        assert "GPU" in row["error"]


def test_no_two_requests_share_a_prompt(monkeypatch):
    seen = []

    def generate(model, input_ids, **_):
        seen.append(input_ids)
        return real(model, input_ids, **_)

    real = decode.generate
    monkeypatch.setattr(decode, "generate", generate)
    arguments = argparse.Namespace(backend="sdpa", kv_mode="l2", new_tokens=3, repeats=3)
    case = {"batch": 1, "context_tokens": 50, "keep_ratio": 0.5, "budget": "uniform"}
    decode.measure(tiny(), None, case, arguments, dict.fromkeys(LIMITS, 1.0))
    assert len(seen) == 4
    assert all(len(set(tokens[0].tolist())) > 25 for tokens in seen)
    assert len({tuple(tokens[0].tolist()) for tokens in seen}) == 4


@pytest.mark.parametrize("tied", [False, True])
def test_a_step_reads_all_weights_but_an_embedding_table_of_its_own(tied):
    model = tiny(tie_word_embeddings=tied)
    table = 512 * 64 * 4
    everything = models.weight_bytes(model)
    assert _measure.decode_bytes(model, 1000) == everything + 1000 - (0 if tied else table)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_operations_are_those_that_torch_counts(architecture):
    model, (input_ids, _) = tiny(architecture), batch([96])
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(input_ids, logits_to_keep=1)
    # Dense attention computes both halves of all pairs; positions' angles are left out.
    dense = 2 * 2 * 96**2 * 64 * 3
    assert prefill.operations(model, 96) == pytest.approx(
        counter.get_total_flops() - dense / 2, rel=1e-3
    )


@pytest.mark.model
def test_prefill_has_a_row_for_every_way_and_every_method(run):
    rows = run(prefill, "--contexts=96", "--ways=hf,whole", "--method-contexts=64", "--repeats=2")
    found = [(row["context_tokens"], row["way"], row["kv_mode"], row["keep_ratio"]) for row in rows]
    assert found[-3:] == [
        *((96, "hf", "none", 1), (96, "whole", "none", 1), (96, "whole", "l2", 0.25)),
    ]
    assert found[:-3] == [(64, "whole", name, 0.25) for name in methods.names()]
    assert not any("error" in row for row in rows)
    assert rows[-2]["least_gb"] == rows[-3]["least_gb"] > rows[-1]["least_gb"]


@NO_GPU
@pytest.mark.model
def test_peers_are_timed_by_the_same_code_and_a_missing_one_says_so(run):
    rows = run(peers, "--context=60", "--new-tokens=4", "--repeats=1", "--ways=whole")
    by_name = {(row["peer"], row["keep_ratio"]): row for row in rows}
    assert "GPU" in by_name["ours, graph", 0.25]["error"]
    assert "--python" in by_name["kvpress, Knorm", 0.25]["error"]
    for name in ("dynamic", "static"):
        row = by_name[f"transformers, {name} cache", 1]
        assert row["ttft_ms"] > 0
        assert row["ms_per_token"] > 0


@pytest.mark.model
def test_kvpress_is_run_by_another_python(run, tmp_path, monkeypatch):
    """A stand-in for kvpress, which prunes nothing."""
    package = "import contextlib\ndef KnormPress(compression_ratio):\n"
    package += "    assert compression_ratio == 0.75\n    return contextlib.nullcontext\n"
    (tmp_path / "kvpress.py").write_text(package)
    info = tmp_path / "kvpress-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kvpress\nVersion: 9\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    few = ("--context=60", "--new-tokens=4", "--repeats=2", "--ways=whole", "--modes=eager")
    *_, row = run(peers, *few, "--python", sys.executable)
    assert row["versions"]["kvpress"] == "9"
    assert len(row["ttft_ms_runs"]) == 2


def test_prompts_of_peers_differ_by_number_alone():
    one, again, other = (_kvpress.prompt(512, 2, 40, number) for number in (1, 1, 2))
    assert one.equal(again)
    assert not one.equal(other)


@pytest.mark.model
def test_every_quantization_has_a_line(run):
    rows = run(quantization, "--quantizations=none,bnb4", "--tokens=64", "--texts=2")
    assert [row["quant_mode"] for row in rows] == ["none", "bnb4"]
    none, bnb4 = rows
    assert none["kl_nats"] == 0
    assert none["same_top_pct"] == 100
    assert none["tokens"] == 2 * 63
    assert bnb4["kl_nats"] > 0.001


def test_quality_is_that_of_the_next_token_distribution():
    model, exact = tiny(), tiny(architecture="qwen2")
    samples = [batch([40], seed)[0] for seed in (1, 2)]
    found = quantization.measure_quality(lambda: model, lambda: exact, samples)
    losses, divergences, same = [], [], []
    for tokens in samples:
        losses.append(model(tokens, labels=tokens).loss.item())
        mine, theirs = (either(tokens).logits[0, :-1].softmax(-1) for either in (model, exact))
        divergences.append(
            torch.nn.functional.kl_div(mine.log(), theirs, reduction="batchmean").item()
        )
        same.append((mine.argmax(-1) == theirs.argmax(-1)).float().mean().item())
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / 2), rel=1e-4)
    assert found["kl_nats"] == pytest.approx(sum(divergences) / 2, rel=1e-4)
    assert found["same_top_pct"] == pytest.approx(50 * sum(same))


@pytest.mark.model
def test_tokens_of_one_way_are_those_of_the_other(run):
    few = ("--context=50", "--new-tokens=5", "--batches=1,3")
    rows = run(decode_tokens, *few, "--modes=eager")
    assert [row["equal_tokens"] for row in rows] == [[5], [5], [5] * 3, [5] * 3]
    assert all(row["first_differing"] == [] for row in rows)


def test_the_first_differing_token_is_looked_at(monkeypatch):
    """A stand-in for a graph whose second row goes wrong at its third token."""
    model, real = tiny(), decode_tokens.generate
    prompts = []

    def generate(model, input_ids, mask, *, graphs, **options):
        result = real(model, input_ids, mask, **options)
        if graphs is not None:
            prompts.append(input_ids[1][mask[1].bool()].tolist() + result.new_tokens[1][:2])
            result.new_tokens[1][2] = 7
        return result

    monkeypatch.setattr(decode_tokens, "generate", generate)
    monkeypatch.setattr(_measure, "check", lambda *_: None)
    arguments = argparse.Namespace(context=40, new_tokens=4)
    case = {"batch": 2, "keep_ratio": 1.0}
    row = decode_tokens.measure(model, "a graph", case, arguments)
    assert row["equal_tokens"] == [4, 2]
    (call,) = row["first_differing"]
    logits = model(torch.tensor(prompts)).logits[0, -1].double()
    allowed = tolerance(logits, 3 * 128)
    assert (call["row"], call["place"]) == (1, 2)
    assert call["gap"] == pytest.approx((logits.max() - logits[7]).item(), abs=allowed)
    ahead = max(logits.max().abs(), logits[7].abs()).float()
    spacing = torch.nextafter(ahead, torch.tensor(torch.inf)) - ahead
    assert call["spacing"] == pytest.approx(spacing.item())
    assert call["kernels_rms"] < allowed


@pytest.mark.model
def test_masks_are_compared_with_the_same_kernel(run):
    rows = run(masks, "--contexts=64", "--window=32", "--repeats=1")
    assert [row["mask"] for row in rows] == [
        *("sdpa", "causal", "sliding_window(32)", "sink_window(4, 32)"),
    ]


def test_a_case_that_fails_is_a_row_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(_measure, "limits", lambda _: {})
    path = tmp_path / "deep" / "report.json"
    report = _report.Report(argparse.Namespace(output=path, model="m", dtype="float32"))

    def fail(error):
        raise error

    report.add({"case": 1}, lambda: {"ms": 1.0})
    report.add({"case": 2}, lambda: fail(torch.OutOfMemoryError("CUDA out of memory. Tried ...")))
    assert len(json.loads(path.read_text())["rows"]) == 2  # what a killed run leaves
    report.add({"case": 3}, lambda: fail(ValueError("token hf_" + "x" * 40 + "\nmore")))
    report.add({"case": 4}, lambda: {"ms": 2.0})
    rows = json.loads(path.read_text())["rows"]
    assert [row.get("ms") for row in rows] == [1, None, None, 2]
    assert rows[1]["error"] == "out of memory"
    assert rows[2]["error"] == "ValueError: token ***"


def test_the_first_request_is_not_counted_and_time_ends_the_rest():
    assert _measure.repeated(iter(range(9)).__next__, repeats=3) == [1, 2, 3]
    assert _measure.repeated(iter(range(9)).__next__, repeats=3, seconds=0) == [1]


def test_limits_are_rates_of_this_machine():
    found = _measure.limits("float32")
    assert set(found) == set(LIMITS)
    assert all(0 < value < 1e5 for value in found.values())
    # 50 GB at the higher of two bandwidths.
    limit = _measure.bandwidth_ms(50_000_000_000, {"read_gb_per_s": 20, "copy_gb_per_s": 25})
    assert limit == pytest.approx(2000)


def test_tables_in_the_docs_are_those_of_the_files():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    place = r"^<!-- benchmarks/(\w+)\.py: (\S+) -->\n(.*?)(?=\n\n[#<]|\Z)"
    places = re.findall(place, page, re.M | re.S)
    assert len(places) == page.count("<!--") >= 8
    for script, name, shown in places:
        module, path = importlib.import_module(f"benchmarks.{script}"), ROOT / name
        expected = _report.as_markdown(json.loads(path.read_text()), module.lines)
        assert shown.strip() == expected
