"""The page: one HTML file with style, script and data inside, which fetches nothing.

Text in the data was written by models. It goes in as JSON in which nothing can end the script
element, the page's script makes text nodes of it and never markup, and the page's policy lets only
the one script and the one style run whose hashes it names.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from longctx import config, figures, outcomes, paired, run_differences, tables
from longctx.console import printable
from longctx.load_results import FullResults

Runs = Sequence[tuple[Path, FullResults]]

# In the order in which they are joined.
_SCRIPTS = ("dom.js", "chart.js", "table.js", "details.js", "page.js")
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
    """What the script reads as DATA: columns, runs, rows (a run and context), samples."""
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
        for name, (key, *of_group), decimals in tables.figures_of([run for _, run in runs])
        if not of_group
    ]  # fmt: skip
    metas = [run["run_meta"] for _, run in runs]
    sample_numbers: dict[tuple[Any, ...], int] = {}
    data_names = _data_names(runs)
    entries, rows = [], []
    for number, ((path, run), label) in enumerate(zip(runs, _labels(metas), strict=True)):
        predictions = {}
        for summary in run["ctx_summaries"]:
            context_tokens = summary["context_tokens"]
            predictions[context_tokens] = [
                {
                    "sample": sample_numbers.setdefault(
                        (sample["sample_id"], *sample["references"]), len(sample_numbers)
                    ),
                    "text": sample["prediction"][:_MAX_CHARACTERS],
                    "scores": {name: sample.get(name) for name in scores},
                }
                for sample in list(paired.samples_at(run, context_tokens).values())[:samples]
            ]
            rows.append(
                {
                    "run": number,
                    "context_tokens": context_tokens,
                    "data": data_names[number, context_tokens],
                    "n": summary["total_count"],
                    "asked": summary.get("n_asked", summary["total_count"]),
                    "samples": outcomes.samples(summary),
                    "missing": outcomes.missing(summary),
                    "oom": tables.is_out_of_memory(summary),
                    "guessing": tables.guessing(summary),
                    "figures": _figures(summary, [column["key"] for column in columns]),
                }
            )
        entries.append(_entry(path, run["run_meta"], label) | {"predictions": predictions})
    return {
        "columns": columns,
        "chart_costs": [figures.named(key).summary_keys[0] for key in figures.QUALITY_AGAINST],
        "statistics": figures.statistics_shown(),
        "runs": entries,
        "rows": rows,
        "samples": [{"id": key[0], "references": key[1:]} for key in sample_numbers],
    }


def _figures(summary: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The figures that there are, each with its interval."""
    wanted = [name for key in keys for name in (key, f"{key}_ci95")]
    return {name: summary[name] for name in wanted if summary.get(name) is not None}


def _entry(path: Path, meta: dict[str, Any], label: str) -> dict[str, Any]:
    values = meta["variables"]
    settings = {
        name: config.text_of(tuple(value) if isinstance(value, list) else value)
        for name, value in values.items()
    }
    about = {f"device {name}": value for name, value in meta["device"].items()}
    about |= {f"{phase} kernel": name for phase, name in (meta.get("kernel") or {}).items()}
    about |= {f"version of {name}": value for name, value in meta["versions"].items()}
    about |= {key.replace("_", " "): meta[key] for key in ("prompt_format", "data_fingerprint")}
    about["git commit"] = meta["git_commit"]
    return {
        "label": label,
        "run_id": meta["run_id"],
        "task": meta["task"],
        "model": meta["model"],
        "attn": values["ATTN_IMPL"],
        "kv_mode": values["KV_MODE"],
        "quant_mode": values["QUANT_MODE"],
        "dtype": values.get("DTYPE", ""),
        "device": str(meta["device"].get("name", "unknown")),
        "command": str(meta.get("command", "")),
        "file": printable(str(path)),
        "settings": settings | {name: config.text_of(value) for name, value in about.items()},
    }


def _labels(metas: Sequence[dict[str, Any]]) -> list[str]:
    """Short labels; task, model and device stand in columns of their own."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, meta in enumerate(metas):
        key = (meta["task"], meta["model"], str(meta["device"].get("name")))
        groups.setdefault(key, []).append(number)
    labels: dict[int, str] = {}
    for numbers in groups.values():
        mine = run_differences.labels([metas[number] for number in numbers])
        labels |= dict(zip(numbers, mine, strict=True))
    return [labels[number] for number in range(len(metas))]


def _data_names(runs: Runs) -> dict[tuple[int, int], str]:
    """(run, context length) -> a name that is the same where the samples are the same.

    The fingerprint of the data, or that of another run of which all that is known of the samples is
    the same: older versions made other fingerprints.
    """
    first_with: dict[tuple[Any, ...], str] = {}
    names = {}
    for number, (_, run) in enumerate(runs):
        fingerprint = run["run_meta"]["data_fingerprint"]
        for summary in run["ctx_summaries"]:
            context_tokens = summary["context_tokens"]
            samples = paired.samples_at(run, context_tokens).values()
            known = tuple(map(paired.identity, samples))
            names[number, context_tokens] = (
                first_with.setdefault(known, fingerprint) if known else fingerprint
            )
    return names
