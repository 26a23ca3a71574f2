"""What a run is: the meta data of its results, and the fingerprint that two equal runs share."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from longctx import data, environment, models, results
from longctx.config import Environment
from longctx.models import ModelSource
from longctx.settings import Settings
from longctx.task import Sample, Task

_ROOT = Path(__file__).parents[1]
_CODE = ("kv_compression", "longctx", "flex_pipeline")


def run_meta(
    task: Task,
    settings: Settings,
    environ: Environment,
    source: ModelSource,
    samples: Mapping[int, Sequence[Sample]],
    *,
    prompt_format: str,
    prompt_frame: tuple[str, str],
) -> dict[str, Any]:
    """The results' `run_meta`.

    prompt_frame: what stands before and after the text of every prompt, such as a date.

    `fingerprint` is shared by runs that differ in nothing that changes a figure: settings, samples,
    model, code, package versions and device. The number of processes is not among these.
    """
    model = results.model_name(settings.model_id)
    count = len(samples[settings.contexts[0]])
    data_fingerprint = _samples_fingerprint(samples)
    versions, device = environment.versions(), environment.device()
    values = {
        "task": task.name,
        **environ.fingerprint_values(),
        "model": models.fingerprint(source),
        "prompt_frame": prompt_frame,
        "code": code_fingerprint(),
        "versions": versions,
        "device": [device["type"], device["name"]],
    }
    return {
        "run_id": results.run_id(
            model,
            settings.attn_impl,
            count,
            settings.batch_size,
            settings.kv_mode,
            settings.quant_mode,
        ),
        "task": task.name,
        "model": model,
        "tags": [model[:64], settings.attn_impl, f"kv-{settings.kv_mode}", settings.quant_mode],
        "command": environ.command(task.script or f"{task.name}_eval.py"),
        "variables": dict(environ.values),
        "score_names": list(task.score_names),
        "groups": list(task.groups),
        "prompt_format": prompt_format,
        "prompt_frame": list(prompt_frame),
        "n_samples": count,
        "n_processes": environ.launch.count,
        "data_fingerprint": data_fingerprint,
        "fingerprint": results.fingerprint(values, data_fingerprint),
        "versions": versions,
        "device": device,
        "git_commit": environment.git_commit(),
    }


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
        for text in (
            sample.sample_id,
            *astuple(sample.parts),
            *sample.references,
            *sample.evidence,
        )
    )
