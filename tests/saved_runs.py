"""Full results as runs write them, with what a test wants to be special."""

import json


def full_results(scores, *, contexts=(512,), variables=None, rows=None, summary=None, **meta):
    """A run whose sample i has the score scores[i] under each of `score_names`, request by request.

    scores: numbers, or None for a request that ran out of memory.
    rows, summary: keys that every row or summary gets on top.
    """
    values = {
        "MODEL_ID": "m", "ATTN_IMPL": "sdpa", "KV_MODE": "none", "KEEP_RATIO": 0.5,
        "KEEP_TOKENS": None, "KV_SCOPE": "prompt", "QUANT_MODE": "none", "DTYPE": "bfloat16",
        "SKIP_LAYERS": [0, 1], "LOGDIR": "a",
    } | (variables or {})  # fmt: skip
    run_meta = {
        "run_id": "m_sdpa_20260101-000000", "task": "narrativeqa", "model": "m",
        "variables": values, "score_names": ["meteor"], "prompt_format": "raw",
        "data_fingerprint": "f", "versions": {"torch": "2"}, "command": "python x.py",
        "device": {"type": "cpu", "name": "c"}, "git_commit": None,
    } | meta  # fmt: skip
    names = run_meta["score_names"]
    all_rows, summaries = [], []
    for context_tokens in contexts:
        for number, score in enumerate(scores):
            sample = {
                "sample_id": f"book-{number}", "prompt_tokens": context_tokens,
                "document_tokens": 900 + number, "dropped_tokens": 0, "prediction": f"p{number}",
                "references": [f"r{number}"], **dict.fromkeys(names, score),
            }  # fmt: skip
            row = {
                "context_tokens": context_tokens, "request": number, "success": True,
                "ttft_ms": 100.0 + number, "latency_ms_total": 300.0 + number,
                "ms_per_token_decode": 5.0, "kv_cache_gb": 0.5, "peak_gpu_mem_gb": None,
                "samples": [sample],
            } | (rows or {})  # fmt: skip
            if score is None:
                row |= {"success": False, "oom": True, "samples": []}
            all_rows.append(row)
        known = [score for score in scores if score is not None]
        summaries.append(
            {
                "context_tokens": context_tokens, "n_oom": len(scores) - len(known),
                "total_count": len(known), "ttft_ms_p50": 105.0, "kv_cache_gb": 0.5,
                "ms_per_token_decode_p50": 5.0, "answered_pct": 100.0,
                **dict.fromkeys(names, sum(known) / len(known) if known else None),
                **{f"{name}_ci95": [0.1, 0.9] if known else None for name in names},
            } | (summary or {})
        )  # fmt: skip
    return {"run_meta": run_meta, "ctx_summaries": summaries, "rows": all_rows, "summary": {}}


def write(folder, **runs):
    """Write runs by name; returns their paths."""
    paths = []
    for name, run in runs.items():
        paths.append(folder / f"{name}_full.json")
        paths[-1].write_text(json.dumps(run))
    return paths


def journal_meta(**changes):
    """The meta data that a journal of such a run begins with."""
    return full_results([0.5])["run_meta"] | {
        "run_id": "run", "fingerprint": "f", "n_samples": 9, **changes
    }  # fmt: skip


def journal_row(number, **changes):
    """The row of a request of one sample, as `RunFiles` keeps it."""
    (row,) = full_results([0.5])["rows"]
    figures = (
        *("prefill_ms", "compress_ms", "decode_ms", "ms_per_token", "tok_per_s"),
        *("tok_per_s_decode", "peak_prefill_gb", "peak_decode_gb", "peak_reserved_gb"),
        *("document_ms", "question_ttft_ms", "setup_ms", "cache_kept_pct"),
        *("kv_full_gb", "kv_window_gb", "state_gb", "pruned_layers", "shared_ttft_ms"),
    )
    texts = ("kernel_prefill", "kernel_decode", "decode_mode", "prefill_mode")
    row["samples"][0] |= {"evidence_kept": None, "answered": True}
    return (
        row
        | {"first_sample": number, "batch_size": 1, "request": number}
        | dict.fromkeys(figures, 1.0)
        | dict.fromkeys(texts, "t")
        | changes
    )
