"""Every figure of a row and of a summary, of requests made by hand."""

from dataclasses import replace

import pytest

from kv_compression.cache import CacheBytes
from kv_compression.generation import Generation
from longctx import results

# Three rows of different length; no figure is equal to another one by chance.
UNEQUAL = Generation(
    new_tokens=[[1, 2, 3, 4, 5], [6, 7], [8]],
    ttft_ms=100.0,
    document_ms=64.0,
    prefill_ms=88.0,
    compress_ms=12.0,
    decode_ms=40.0,
    latency_ms=140.0,
    cache_bytes=CacheBytes(
        full=200_000_000, window=50_000_000, state=3_000_000, unpruned=800_000_000
    ),
    stored_tokens=[30, 20],
    pruned_layers=1,
    peak_prefill_bytes=3_000_000_000,
    peak_decode_bytes=2_000_000_000,
    peak_reserved_bytes=5_000_000_000,
    kernels={"prefill": ["a", "b"], "decode": ["c"]},
    decode_mode="graph",
    capture_ms=7.0,
    prefill_mode="layered",
    choice_log_probs=[[], [], []],
)
EXPECTED = {
    "latency_ms_total": 140.0,
    "ttft_ms": 100.0,
    "shared_ttft_ms": None,
    "document_ms": 64.0,
    "question_ttft_ms": 36.0,
    "prefill_ms": 88.0,
    "compress_ms": 12.0,
    "decode_ms": 40.0,
    "setup_ms": 13.0,
    "avg_gen_tokens": 8 / 3,
    "tok_per_s": 8 / 0.140,
    "ms_per_token": 52.5,  # of the mean row: 140 ms for 8/3 tokens
    "tok_per_s_decode": 125.0,  # five tokens come after the first of their row
    "ms_per_token_decode": 10.0,  # four steps
    "kv_cache_gb": 0.25,
    "kv_full_gb": 0.2,
    "kv_window_gb": 0.05,
    "state_gb": 0.003,
    "cache_kept_pct": 100 * 253 / 853,
    "pruned_layers": 1,
    "stored_tokens_per_layer": [30, 20],
    "peak_gpu_mem_gb": 3.0,
    "peak_prefill_gb": 3.0,
    "peak_decode_gb": 2.0,
    "peak_reserved_gb": 5.0,
    "kernel_prefill": "a+b",
    "kernel_decode": "c",
    "decode_mode": "graph",
    "capture_ms": 7.0,
    "prefill_mode": "layered",
    "success": True,
    "samples": [],
}


def row_of(result, samples=(), first_sample=0, **identity):
    place = {"first_sample": first_sample, "batch_size": len(result.new_tokens)}
    return results.request_row(place | identity, result, list(samples), wall_ms=160.0)


def test_each_figure_of_a_row_is_its_formulas():
    row = results.request_row({"run_id": "r"}, UNEQUAL, [], wall_ms=160.0)
    assert set(row) == {"run_id", *EXPECTED}
    for key, value in EXPECTED.items():
        assert row[key] == (pytest.approx(value) if isinstance(value, float) else value), key


def test_the_peak_is_that_of_the_higher_phase_and_null_without_a_gpu():
    decode = replace(UNEQUAL, peak_decode_bytes=4_000_000_000)
    assert row_of(decode)["peak_gpu_mem_gb"] == 4.0
    nothing = dict.fromkeys(("peak_prefill_bytes", "peak_decode_bytes", "peak_reserved_bytes"))
    row = row_of(replace(UNEQUAL, **nothing))
    assert row["peak_gpu_mem_gb"] is row["peak_reserved_gb"] is None


def test_one_new_token_has_no_decode_figures_and_no_question_no_part_of_its_own():
    result = replace(
        UNEQUAL, new_tokens=[[1], [2]], decode_ms=0.0, latency_ms=100.0, document_ms=None
    )
    row = row_of(result)
    assert row["ms_per_token_decode"] is row["tok_per_s_decode"] is None
    assert row["document_ms"] is row["question_ttft_ms"] is None
    assert (row["tok_per_s"], row["ms_per_token"]) == (20.0, 100.0)


def scored(n, em=1.0):
    return {
        "sample_id": f"s{n}", "em": em, "answered": True, "evidence_kept": None,
        "prompt_tokens": 8, "dropped_tokens": 0,
    }  # fmt: skip


def summary_of(rows, n_asked, **options):
    return results.context_summary({}, rows, ["em"], seed=0, n_asked=n_asked, **options)


def requests(sizes, ttft_ms=100.0):
    """Rows of batches of these sizes; the smaller a batch, the less of all that is measured."""
    rows, first = [], 0
    for size in sizes:
        result = replace(
            UNEQUAL,
            new_tokens=[[1, 2]] * size,
            ttft_ms=ttft_ms * size,
            latency_ms=140.0 * size,
            cache_bytes=CacheBytes(10**9 * size, 0, 0, 10**9 * size),
            peak_prefill_bytes=10**9 * size,
            peak_decode_bytes=0,
        )
        rows.append(row_of(result, map(scored, range(first, first + size)), first))
        first += size
    return rows


@pytest.mark.parametrize(
    ("sizes", "timed", "largest"),
    [((4, 4, 1), 2, 4), ((4, 2, 2, 1), 1, 4), ((2, 2, 1), 2, 2), ((1, 1), 2, 1), ((3,), 1, 3)],
)
def test_figures_of_time_and_memory_are_of_the_largest_batch_alone(sizes, timed, largest):
    summary = summary_of(requests(sizes), sum(sizes))
    assert (summary["n_timed_requests"], summary["n_requests"]) == (timed, len(sizes))
    assert summary["ttft_ms_p50"] == summary["ttft_ms_p95"] == 100 * largest
    assert summary["latency_ms_p50"] == 140 * largest
    assert summary["tok_per_s_p50"] == pytest.approx(2 / 0.140)
    assert summary["peak_gpu_mem_gb_p95"] == summary["kv_cache_gb"] == largest
    # Scores are of all samples.
    assert summary["total_count"] == summary["n_scored"] == sum(sizes)


def test_percentiles_are_of_each_figure():
    summary = summary_of(requests([2, 2]), 4)
    for key, value in row_of(UNEQUAL).items():
        if key.endswith("_ms") and key != "capture_ms":
            assert f"{key}_p50" in summary, key
            assert f"{key}_p95" in summary, key
        assert (value is None) == (key == "shared_ttft_ms")
    assert summary["setup_ms_p50"] == 160 - 280 - 7
    assert summary["question_ttft_ms_p50"] == 200 - 64


def test_of_questions_about_one_document_the_first_has_its_reading():
    first = row_of(replace(UNEQUAL, prefill_is_shared=True))
    assert first["ttft_ms"] is None
    assert first["document_ms"] == row_of(UNEQUAL)["document_ms"]
    assert first["compress_ms"] == row_of(UNEQUAL)["compress_ms"]


NOT_OWN = {"prefill_is_shared": True, "document_is_own": False}


def test_what_caches_of_one_prefill_share_is_none_of_their_own():
    own, shared = row_of(UNEQUAL), row_of(replace(UNEQUAL, **NOT_OWN))
    differs = {key for key in own if own[key] != shared[key]}
    assert differs == {
        *("setup_ms", "ttft_ms", "shared_ttft_ms", "document_ms", "prefill_ms", "latency_ms_total"),
        *(
            "ms_per_token",
            "tok_per_s",
            "compress_ms",
            "peak_gpu_mem_gb",
            "peak_prefill_gb",
            "peak_decode_gb",
        ),
        "peak_reserved_gb",
    }
    assert shared["shared_ttft_ms"] == own["ttft_ms"]
    assert all(shared[key] is None for key in differs - {"shared_ttft_ms"})
