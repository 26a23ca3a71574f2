"""The machine and the software that a run's figures belong to."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    "torch", "transformers", "tokenizers", "accelerate", "bitsandbytes", "flash-attn", "triton",
    "nltk", "rouge-score", "datasets",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a figure, where installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def device() -> dict[str, Any]:
    """The GPUs, or the processor where there is none."""
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        names = sorted({torch.cuda.get_device_name(index) for index in range(count)})
        return {"type": "cuda", "name": ", ".join(names), "count": count}
    name = f"{_processor()} ({platform.machine()})"
    return {"type": "cpu", "name": name, "count": 1, "threads": torch.get_num_threads()}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "cpu"


def git_commit() -> str | None:
    """The commit of this checkout, `-dirty` behind it when files differ; None outside of one."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
