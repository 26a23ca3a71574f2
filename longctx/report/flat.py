"""Runs as CSV, with every figure, and as a Markdown table, with the main ones."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longctx import config, outcomes, tables
from longctx.console import printable
from longctx.load_results import FullResults

Runs = Sequence[tuple[Path, FullResults]]

# What tells runs apart and stands in no summary.
_META = ("task", "data_fingerprint", "prompt_format", "git_commit")
_OF_A_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_text(runs: Runs) -> str:
    """A row a run and context: keys of the summaries, then the variables (in capitals), machine.

    An interval becomes two columns, `_low` and `_high`; what stands in groups gets dots.
    """
    rows = []
    for path, run in runs:
        meta = run["run_meta"]
        about = {key: meta[key] for key in _META} | {"device": meta["device"].get("name")}
        about |= {name: config.text_of(value) for name, value in meta["variables"].items()}
        for summary in run["ctx_summaries"]:
            missing = {"missing": outcomes.missing(summary), "file": printable(str(path))}
            rows.append(_flat(summary) | about | missing)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writerow({key: _cell(key) for key in writer.fieldnames})
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    return file.getvalue()


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = prefix + name
        if key.endswith("_ci95"):
            low, high = value or (None, None)
            found |= {f"{key}_low": low, f"{key}_high": high}
        elif isinstance(value, dict):
            found |= _flat(value, f"{key}.")
        else:
            found[key] = value
    return found


def _cell(value: Any) -> Any:
    """A spreadsheet takes text that begins with one of these for a formula."""
    if isinstance(value, str) and value.startswith(_OF_A_FORMULA):
        return f"'{value}"
    return value


def markdown(runs: Runs) -> str:
    """A row a run and context: model, what sets the run apart, costs, scores with intervals.

    Below the table a paragraph for each row of which samples are missing.
    """
    summaries = [(run["run_meta"], summary) for _, run in runs for summary in run["ctx_summaries"]]
    # No groups: too wide.
    known = tables.lines_of([run for _, run in runs])
    figures = [
        (path[0], decimals)
        for _, path, decimals in known
        if len(path) == 1 and any(summary.get(path[0]) is not None for _, summary in summaries)
    ]
    heads = ["task", "model", "run", "context_tokens", "samples", *(key for key, _ in figures)]
    lines = [heads, ["---"] * 3 + ["---:"] * (len(heads) - 3)]
    for meta, summary in summaries:
        run = tables.label(meta)
        cells = [meta["task"], meta["model"], run]
        cells += [f"{summary['context_tokens']:,}", outcomes.samples(summary)]
        chance = f"(cannot be told from guessing, {summary.get('chance')})"
        cells += [tables.cell(summary, (key,), digits, chance) for key, digits in figures]
        lines.append(list(map(_escaped, cells)))
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    names = [f"{meta['model']}, {tables.label(meta)}" for meta in (r["run_meta"] for _, r in runs)]
    captions = tables.captions([run for _, run in runs], names)
    return table + "".join(f"\n{_escaped(caption)}\n" for caption in captions)


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\|<>\[\]`*&~!])", r"\\\1", " ".join(text.split()))
