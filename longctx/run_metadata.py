"""What a run is: the meta data of its results, and the fingerprint that two equal runs share."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longctx import data, environment, models, results
from longctx.config import Environment
from longctx.models import ModelSource
from longctx.prompts import PromptBuilder
from longctx.settings import Settings
from longctx.task import Sample, Task

_ROOT = Path(__file__).parents[1]
_MODEL_CHARACTERS = 96  # as many as the hub's ids have
_DATA_CHARACTERS = 40
_NAME_CHARACTERS = 200  # a file's name has 255 bytes, with what stands behind the run's
_CODE = ("kv_compression", "longctx", "flex_pipeline")


def run_meta(
    task: Task,
    settings: Settings,
    environ: Environment,
    source: ModelSource,
    samples: Mapping[int, Sequence[Sample]],
    builder: PromptBuilder,
    *,
    shares_prefill: bool = False,
    shares_documents: bool = False,
) -> dict[str, Any]:
    """The results' `run_meta`.

    `prompt_frame` is what stands before and after the text of every prompt, such as a date.
    `fingerprint` is shared by runs that differ in nothing that changes a figure: settings, samples,
    model, code, package versions and device. The number of processes is not among these.
    """
    model = model_name(settings.model_id)
    n_samples = len(samples[settings.contexts[0]])
    data_fingerprint = _samples_fingerprint(samples)
    versions, device = environment.versions(), environment.device()
    fingerprint_values = {
        "task": task.name,
        **environ.fingerprint_values(settings),
        "model": models.fingerprint(source),
        "prompt_frame": builder.frame,
        "code": code_fingerprint(),
        "versions": versions,
        "device": [device["type"], device["name"]],
        **({"shares_prefill": True} if shares_prefill else {}),
        **({"shares_documents": True} if shares_documents else {}),
    }
    return {
        "run_id": run_id(settings, model, n_samples),
        "task": task.name,
        "model": model,
        "tags": [model[:64], settings.attn_impl, f"kv-{settings.kv_mode}", settings.quant_mode],
        "command": environ.command(settings, task.script or f"{task.name}_eval.py"),
        "variables": environ.values(settings),
        "score_names": list(task.score_names),
        "groups": list(task.groups),
        "prompt_format": "chat template" if builder.chat_template else "raw",
        "prompt_frame": list(builder.frame),
        "n_samples": n_samples,
        "n_processes": environ.launch.count,
        "shares_prefill": shares_prefill,
        "shares_documents": shares_documents,
        "data_fingerprint": data_fingerprint,
        "fingerprint": results.fingerprint(fingerprint_values, data_fingerprint),
        "versions": versions,
        "device": device,
        "git_commit": environment.git_commit(),
    }


def run_id(settings: Settings, model: str, n_samples: int) -> str:
    """Name of a run and of its files: letters, digits, dots, dashes and underscores only.

    It tells the data set, what is kept of the cache, the budget, the scope and the cache's format
    where these are not the defaults.
    """
    default, kept = type(settings), []
    if settings.kv_mode != "none" and settings.keep_tokens is not None:
        kept.append(f"{settings.keep_tokens}tokens")
    elif settings.kv_mode != "none" and settings.keep_ratio != default.keep_ratio:
        kept.append(f"{settings.keep_ratio:g}")
    kept += [settings.kv_budget] if settings.kv_budget != default.kv_budget else []
    kept += [settings.kv_scope] if settings.kv_scope != default.kv_scope else []
    kept += [settings.kv_quant] if settings.kv_quant != default.kv_quant else []
    data_set = re.sub(r"\.(jsonl?|parquet)$", "", Path(settings.dataset_id).name)
    parts = [
        model[:_MODEL_CHARACTERS],
        settings.attn_impl,
        *([data_set[:_DATA_CHARACTERS]] if settings.dataset_id != default.dataset_id else []),
        f"N{n_samples}",
        f"B{settings.batch_size}",
        "-".join([f"KV{settings.kv_mode}", *kept]),
        f"Q{settings.quant_mode}",
    ]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts)).lstrip(".-")
    timestamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{name[:_NAME_CHARACTERS]}_{timestamp}"


def model_name(model_id: str) -> str:
    """The model's name in results: a folder's last part, a hub id as it is."""
    return Path(model_id).resolve().name if Path(model_id).is_dir() else model_id


def code_fingerprint() -> str:
    """Sixteen hex digits that change with any line of the code that makes figures."""
    paths = [path for name in _CODE for path in (_ROOT / name).rglob("*.py")]
    digest = hashlib.sha256()
    for path in sorted([*paths, *_ROOT.glob("*_eval.py")]):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _samples_fingerprint(samples: Mapping[int, Sequence[Sample]]) -> str:
    # Lists that contexts share are read once.
    lists = {id(mine): mine for mine in samples.values()}.values()
    return data.fingerprint(
        text
        for mine in lists
        for sample in mine
        for text in (sample.sample_id, *sample.parts.texts, *sample.references, *sample.evidence)
    )
