"""Runs as tables on the terminal: figures by context, and a few predictions."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rich.markup import escape
from rich.table import Table

from longctx import figures, outcomes
from longctx.console import printable, stdout

Line = tuple[str, tuple[str, ...], int]  # label, keys that lead to it in the summary, decimals

_NOT_TOLD = "\N{DAGGER}"
_SHOWN_PREDICTIONS = 3
_SHOWN_CHARACTERS = 100


def table_of(runs: Sequence[dict[str, Any]], labels: Sequence[str] = ("",)) -> Table:
    """Full results side by side: for each figure a line a run, a column a context length.

    labels: of the runs, shown where there are several.
    """
    summaries = _summaries(runs)
    contexts = sorted({summary["context_tokens"] for summary in summaries})
    several = len(runs) > 1
    table = Table(title=escape(printable(runs[0]["run_meta"]["model"])), title_justify="left")
    table.add_column("p50; mean [95%]")
    if several:
        table.add_column("run")
    for context_tokens in contexts:
        table.add_column(f"{context_tokens:,}", justify="right")

    def add_line(name: str, cell_of: Callable[[dict[str, Any]], str]) -> None:
        for run, run_label in zip(runs, labels, strict=True):
            at = {summary["context_tokens"]: summary for summary in run["ctx_summaries"]}
            cells = [cell_of(at[length]) if length in at else "" for length in contexts]
            texts = [name, *([run_label] if several else []), *cells]
            table.add_row(*map(escape, texts))
            name = ""
        if several:
            table.add_section()

    add_line("samples", outcomes.samples)
    for name, path, decimals in lines_of(runs):
        cell_of = partial(cell, path=path, decimals=decimals, not_told=_NOT_TOLD)
        add_line(printable(name)[:_SHOWN_CHARACTERS], cell_of)
    explained = captions(runs, labels if several else [""])
    chance = next((guessing(s) for s in summaries if guessing(s) is not None), None)
    if chance is not None:
        explained.append(f"{_NOT_TOLD} cannot be told from guessing, {chance:g}")
    if explained:
        table.caption = escape("\n".join(explained))
        table.caption_justify = "left"
    return table


def captions(runs: Sequence[dict[str, Any]], labels: Sequence[str]) -> list[str]:
    """For each context length of which samples are missing a line that says how many, and why."""
    return [
        outcomes.caption(summary, printable(label))
        for run, label in zip(runs, labels, strict=True)
        for summary in run["ctx_summaries"]
        if outcomes.is_partial(summary)
    ]


def _summaries(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [summary for run in runs for summary in run["ctx_summaries"]]


def lines_of(runs: Sequence[dict[str, Any]]) -> list[Line]:
    """The figures that any of the runs has; several keys lead to the score of a group."""
    costs: list[Line] = []
    shares: list[Line] = []
    for figure in figures.shown(figures.TABLE):
        line = figure.heading, (figure.summary_keys[0],), figure.shown[figures.TABLE]
        (shares if figure.group == figures.QUALITY else costs).append(line)
    lines = [*costs, *_score_lines(runs), *shares]
    # Others: GPU memory on a CPU, quality of random weights.
    measured = [
        line for line in lines if any(_value(s, line[1]) is not None for s in _summaries(runs))
    ]
    return measured or lines[:1]


def _score_lines(runs: Sequence[dict[str, Any]]) -> list[Line]:
    """Each score, where samples failed also with these as 0, then its groups'."""
    labels: dict[tuple[str, ...], str] = {}
    has_failures = any(map(outcomes.n_failures, _summaries(runs)))
    for run in runs:
        meta = run["run_meta"]
        for score in meta["score_names"]:
            labels.setdefault((score,), score)
            if has_failures:
                labels.setdefault((score + outcomes.AS_0,), f"{score}, failures as 0")
            if any(s.get(f"{score}_floor") is not None for s in run["ctx_summaries"]):
                labels.setdefault((f"{score}_floor",), "  floor: answers shuffled")
            for group in meta.get("groups", ()):
                key = f"{score}_by_{group}"
                for value in sorted({v for s in run["ctx_summaries"] for v in s[key]}):
                    label = f"  {group.replace('_', ' ')}: {value}"
                    labels.setdefault((key, value, score), label)
    return [(label, path, 3) for path, label in labels.items()]


def guessing(summary: dict[str, Any]) -> float | None:
    """The `em` of guessing, where the measured one cannot be told from it."""
    return summary.get("chance") if summary.get("em_told_from_chance") is False else None


def _value(summary: dict[str, Any], path: tuple[str, ...], suffix: str = "") -> Any:
    """What the keys of `path` lead to; `suffix` belongs to the last one."""
    *groups, key = path
    for group in groups:
        summary = summary.get(group, {})
    return summary.get(key + suffix)


def label(meta: dict[str, Any]) -> str:
    """What sets a run apart, short."""
    values = meta["variables"]
    parts = [values["ATTN_IMPL"], values["KV_MODE"]]
    if "MASK_TYPE" in values:
        parts[0] += f" {values['MASK_TYPE']}"
    if values["KV_MODE"] != "none":
        kept = values.get("KEEP_TOKENS") or f"{values['KEEP_RATIO']:g}"
        parts[-1] += f" {kept}"
        if values.get("KV_BUDGET", "uniform") != "uniform":
            parts[-1] += f" {values['KV_BUDGET']}"
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


def cell(summary: dict[str, Any], path: tuple[str, ...], decimals: int, not_told: str) -> str:
    """A figure of a context summary, with its interval, as tables show it.

    not_told: what marks a score that guessing may have given.
    """
    if is_out_of_memory(summary):
        return "out of memory"
    value = _value(summary, path)
    interval = _value(summary, path, "_ci95")
    text = number_text(value, decimals)
    if interval is not None:
        text += f" [{', '.join(number_text(bound, decimals) for bound in interval)}]"
    if path == ("em",) and guessing(summary) is not None:
        text += f" {not_told}"
    is_marked = value is not None and outcomes.is_partial(summary)
    return f"{text} {outcomes.MARK}" if is_marked else text


def is_out_of_memory(summary: dict[str, Any]) -> bool:
    """Whether a context length has no figures since memory ran out, there or at a shorter one."""
    ran_out = summary["n_oom"] or summary.get("skipped_after_oom_at")
    return bool(ran_out and not summary["total_count"])


def number_text(value: object, decimals: int) -> str:
    """A number as tables show it; a dash for what was not measured."""
    return f"{value:,.{decimals}f}" if isinstance(value, (int, float)) else "-"


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [heading, ["---"] * len(heading), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
