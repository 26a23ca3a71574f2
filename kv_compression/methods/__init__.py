"""Pruning methods, one file each; the file's name is the value of KV_MODE that chooses it.

A method file defines `Method`, a frozen dataclass whose fields are its parameters and whose
`score(keys)` says how much each stored token is worth. Counts, ties, order, padding and skipped
layers are not the method's business. A field's metadata holds `env` (the environment variable that
sets it), `help`, and `choices` where the values are few.
"""

from typing import Any, ClassVar, Protocol

import torch

from kv_compression import plugins


class PruningMethod(Protocol):
    """What a method file's `Method` provides."""

    __dataclass_fields__: ClassVar[dict[str, Any]]  # a dataclass: its fields are its parameters

    def score(self, keys: torch.Tensor) -> torch.Tensor:
        """keys (B, H, S, D) with their rotary positions -> (B, H, S) float32; the highest stay."""
        ...


def names() -> tuple[str, ...]:
    """Every method's name."""
    return plugins.names(__name__)


def method_class(name: str) -> type[PruningMethod]:
    """The `Method` class of the file `name`. Raises ValueError for an unknown name."""
    return plugins.load(__name__, name).Method
