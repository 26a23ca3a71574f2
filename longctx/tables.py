"""Runs as tables on the terminal: figures by context, and a few predictions."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from longctx.console import printable, stdout

# Label, key of the context summary, decimals.
COSTS = (
    ("TTFT, ms", "ttft_ms_p50", 1),
    ("decode, ms/token", "ms_per_token_decode_p50", 2),
    ("decode, tokens/s", "tok_per_s_decode_p50", 1),
    ("latency, ms", "latency_ms_p50", 1),
    ("KV cache, GB", "kv_cache_gb", 4),
    ("GPU peak, GB", "peak_gpu_mem_gb_p95", 2),
)
_SHOWN_PREDICTIONS = 3
_SHOWN_CHARACTERS = 100


def table_of(runs: Sequence[dict[str, Any]]) -> Table:
    """Full results side by side: for each figure a line a run, a column a context length."""
    names = list(dict.fromkeys(name for run in runs for name in run["run_meta"]["score_names"]))
    figures = (*COSTS, *((name, name, 3) for name in names), ("answered, %", "answered_pct", 1))
    contexts = sorted({s["context_tokens"] for run in runs for s in run["ctx_summaries"]})
    table = Table(title=escape(runs[0]["run_meta"]["model"]), title_justify="left")
    table.add_column("p50; mean [95%]")
    if len(runs) > 1:
        table.add_column("run")
    for context_tokens in contexts:
        table.add_column(f"{context_tokens:,}", justify="right")
    for name, key, decimals in figures:
        if all(s.get(key) is None and not s["n_oom"] for run in runs for s in run["ctx_summaries"]):
            continue  # GPU memory on a CPU, quality of random weights
        for place, run in enumerate(runs):
            at = {summary["context_tokens"]: summary for summary in run["ctx_summaries"]}
            cells = [_cell(at.get(length), key, decimals) for length in contexts]
            run_label = [escape(label(run["run_meta"]))] if len(runs) > 1 else []
            table.add_row("" if place else name, *run_label, *cells)
        if len(runs) > 1:
            table.add_section()
    return table


def label(meta: dict[str, Any]) -> str:
    """What sets a run apart, short."""
    values = meta["variables"]
    parts = [values["ATTN_IMPL"], values["KV_MODE"]]
    if values["KV_MODE"] != "none":
        kept = values.get("KEEP_TOKENS") or f"{values['KEEP_RATIO']:g}"
        parts[-1] += f" {kept}"
        if values["KV_SCOPE"] != "prompt":
            parts[-1] += f" ({values['KV_SCOPE']})"
        if values.get("PRUNE_EVERY"):
            parts[-1] += f" every {values['PRUNE_EVERY']}"
    if values.get("KV_QUANT", "none") != "none":
        parts[-1] += f" {values['KV_QUANT']}"
    if values["QUANT_MODE"] != "none":
        parts.append(values["QUANT_MODE"])
    return ", ".join(parts)


def print_predictions(run: dict[str, Any]) -> None:
    """A few predictions at the longest context, beside their references."""
    good = [row for row in run["rows"] if row["success"]]
    if not good:
        return
    longest = max(row["context_tokens"] for row in good)
    samples = [s for row in good if row["context_tokens"] == longest for s in row["samples"]]
    table = Table(title=f"predictions at {longest:,} tokens", title_justify="left")
    for heading in ("sample", "prediction", "references"):
        table.add_column(heading, ratio=1)
    for sample in samples[:_SHOWN_PREDICTIONS]:
        cells = (sample["sample_id"], sample["prediction"], " | ".join(sample["references"]))
        table.add_row(*(escape(printable(cell)[:_SHOWN_CHARACTERS]) for cell in cells))
    stdout.print(table)


def print_paths(paths: Sequence[object]) -> None:
    """File names, unwrapped, so that they can be copied."""
    for path in paths:
        stdout.print(f"  {path}", markup=False, highlight=False, soft_wrap=True)


def _cell(summary: dict[str, Any] | None, key: str, decimals: int) -> str:
    if summary is None:
        return ""
    if summary["n_oom"] and not summary["total_count"]:
        return "out of memory"
    interval = summary.get(f"{key}_ci95")
    text = figure(summary.get(key), decimals)
    if interval is None:
        return text
    return text + rf" \[{figure(interval[0], decimals)}, {figure(interval[1], decimals)}]"


def figure(value: object, decimals: int) -> str:
    """A number as tables show it; a dash for what was not measured."""
    return f"{value:,.{decimals}f}" if isinstance(value, (int, float)) else "-"


def guessing(summary: dict[str, Any]) -> float | None:
    """The `em` of guessing, where the measured one cannot be told from it."""
    return summary.get("chance") if summary.get("em_told_from_chance") is False else None
