"""The page: one HTML file with style, script and data inside, which fetches nothing.

Text in the data was written by models. It goes in as JSON in which nothing can end the script
element, the page's script makes text nodes of it and never markup, and the page's policy lets only
the one script and the one style run whose hashes it names.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from longctx import choice_tables, config, figures, outcomes, paired, run_differences, tables
from longctx.console import printable
from longctx.load_results import FullResults
from longctx.report import sweeps

Runs = Sequence[tuple[Path, FullResults]]

# In the order in which they are joined.
_SCRIPTS = (
    *("dom.js", "chart.js", "lengths.js", "answers.js", "heat.js", "table.js"),
    *("details.js", "page.js"),
)
_MAX_CHARACTERS = 2000


def document(runs: Runs, samples: int) -> str:
    """The page of these runs, with the predictions of `samples` samples of each context length."""
    style = _resource("page.css")
    script = "".join(map(_resource, _SCRIPTS))
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        f"base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; "
        f"trusted-types 'none'"
    )
    return Template(_resource("page.html")).substitute(
        policy=policy,
        style=style,
        script=script,
        statistics=figures.statistics_shown(),
        data=embedded(_data(runs, samples)),
    )


def embedded(value: Any) -> str:
    r"""JSON that can stand in a script element: ASCII, with <, > and & as \u escapes."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(runs: Runs, samples: int) -> dict[str, Any]:
    """What the script reads as DATA: columns, runs, rows (a run and context), samples, groups."""
    scores = dict.fromkeys(name for _, run in runs for name in run["run_meta"]["score_names"])
    costs = {
        figure.summary_keys[0]: figure
        for figure in figures.shown(figures.TABLE)
        if figure.group != figures.QUALITY
    }
    columns: list[dict[str, Any]] = [
        {"key": key, "label": name, "decimals": decimals,
         "cost": key in costs, "score": key in scores,
         "more_is_better": key not in costs or costs[key].higher_is_better}
        for name, (key, *of_group), decimals in tables.lines_of([run for _, run in runs])
        if not of_group
    ]  # fmt: skip
    metas = [run["run_meta"] for _, run in runs]
    sample_numbers: dict[tuple[Any, ...], int] = {}
    questions: dict[tuple[Any, ...], Any] = {}
    data_names = paired.data_names([run for _, run in runs])
    groups = sweeps.groups([run for _, run in runs])
    telling = _telling(groups)
    entries, rows = [], []
    for number, ((path, run), names) in enumerate(zip(runs, _labels(metas), strict=True)):
        predictions = {}
        for summary in run["ctx_summaries"]:
            context_tokens = summary["context_tokens"]
            shown = list(paired.samples_at(run, context_tokens).values())[:samples]
            questions |= {_identity(s): s["question"] for s in shown if s.get("question")}
            predictions[context_tokens] = [
                {
                    "sample": sample_numbers.setdefault(_identity(sample), len(sample_numbers)),
                    "text": sample["prediction"][:_MAX_CHARACTERS],
                    "scores": {name: sample.get(name) for name in scores},
                }
                for sample in shown
            ]
            about = {
                "run": number,
                "data": data_names[number, context_tokens],
                "telling": telling.get((number, context_tokens)),
            }
            rows.append(about | _row(summary, [column["key"] for column in columns]))
        entries.append(_entry(path, run["run_meta"], names) | {"predictions": predictions})
    return {
        "columns": columns,
        "chart_costs": [figures.named(key).summary_keys[0] for key in figures.QUALITY_AGAINST],
        "length_costs": [figures.named(key).summary_keys[0] for key in figures.AGAINST_LENGTH],
        "statistics": figures.statistics_shown(),
        "runs": entries,
        "rows": rows,
        "samples": [
            {
                "id": key[0],
                "references": key[1:],
                "question": str(questions.get(key, ""))[:_MAX_CHARACTERS],
            }
            for key in sample_numbers
        ],
        "groups": groups,
    }


def _row(summary: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {
        "context_tokens": summary["context_tokens"],
        "n": summary["total_count"],
        "asked": summary.get("n_asked", summary["total_count"]),
        "samples": outcomes.samples(summary),
        "missing": outcomes.missing(summary),
        "oom": tables.is_out_of_memory(summary),
        "guessing": tables.guessing(summary),
        "figures": _figures(summary, keys),
    }


def _identity(sample: dict[str, Any]) -> tuple[str, ...]:
    """What tells samples apart; older results have no question."""
    return (sample["sample_id"], *sample["references"])


def _telling(groups: Sequence[dict[str, Any]]) -> dict[tuple[int, int], tuple[int, bool]]:
    """(run, context length) -> place of its group among the most telling ones, and `told`."""
    found: dict[tuple[int, int], tuple[int, bool]] = {}
    for place, group in enumerate(groups):
        if not group["all_lengths"]:
            (length,) = group["lengths"]
            for run in (group["full"], *(choice["run"] for choice in group["choices"])):
                found.setdefault((run, length), (place, group["told"]))
    return found


def _figures(summary: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The figures that there are, each with its interval."""
    wanted = [name for key in keys for name in (key, f"{key}_ci95")]
    return {name: summary[name] for name in wanted if summary.get(name) is not None}


def _entry(path: Path, meta: dict[str, Any], labels: tuple[str, str]) -> dict[str, Any]:
    values = meta["variables"]
    about = values | {f"device {name}": value for name, value in meta["device"].items()}
    about |= {f"{phase} kernel": name for phase, name in (meta.get("kernel") or {}).items()}
    about |= {f"version of {name}": value for name, value in meta["versions"].items()}
    about |= {key.replace("_", " "): meta[key] for key in ("prompt_format", "data_fingerprint")}
    about["git commit"] = meta["git_commit"]
    return {
        "label": labels[0],
        "short": labels[1],
        "run_id": meta["run_id"],
        "task": meta["task"],
        "data": choice_tables.task_name(meta["task"], str(values.get("DATASET_ID") or "")),
        "model": meta["model"],
        "attn": values["ATTN_IMPL"],
        "kv_mode": values["KV_MODE"],
        "quant_mode": values["QUANT_MODE"],
        "dtype": values.get("DTYPE", ""),
        "device": str(meta["device"].get("name", "unknown")),
        "command": str(meta.get("command", "")),
        "file": printable(str(path)),
        "settings": {name: config.text_of(value) for name, value in about.items()},
    }


def _labels(metas: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """A label and its short form; task, model and device stand in columns of their own."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    keys = [(meta["task"], meta["model"], str(meta["device"].get("name"))) for meta in metas]
    for key, meta in zip(keys, metas, strict=True):
        groups.setdefault(key, []).append(meta)
    labels: dict[tuple[str, ...], Iterator[tuple[str, str]]] = {}
    for about, group in groups.items():
        full = run_differences.labels(group)
        labels[about] = iter(zip(full, run_differences.short(full), strict=True))
    return [next(labels[key]) for key in keys]
