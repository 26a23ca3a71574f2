"""Attention backends, one file each, right for every shape that a pruned cache brings about.

A backend file defines what `Backend` says; an object that does the same can stand in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from kv_compression import plugins

if TYPE_CHECKING:
    # Whoever asks for the backends' names need not wait for these.
    import torch
    from transformers import PreTrainedModel

_BACKEND_OF_TRANSFORMERS_NAME = {
    "eager": "eager",
    "sdpa": "sdpa",
    "flash_attention_2": "flash2",
    "flex_attention": "flex",
}


class Backend(Protocol):
    """What computes attention: a module of this package, or an object.

    Besides, it may have a function `features()` that names, of "window", "softcap" and "sinks",
    what it can do. "window": it heeds `layout.window`. The other two are keyword arguments of its
    `attend`, given only where a model asks for them: `softcap`, a number c that makes c * tanh(x /
    c) of each score x, and `sinks`, (Hq,), for each head a score that takes its share of the
    softmax and adds nothing to the output.
    """

    def check(self, device_type: str, dtype: torch.dtype) -> None:
        """Raises ValueError when the backend cannot run there."""

    @property
    def attend(self) -> Callable[..., tuple[torch.Tensor, str]]:
        """A function of query, key, value, layout and scaling.

        query (B, Hq, Q, D), key and value (B, H, S, D), a `kv_compression.layout.Layout`, a number.
        It returns the output, (B, Q, Hq, D), and the name of the kernel that ran.
        """


def names() -> tuple[str, ...]:
    """Every backend's name."""
    return plugins.names(__name__)


def backend(name: str) -> Backend:
    """The backend module `name`. Raises ValueError for an unknown name."""
    return cast(Backend, plugins.load(__name__, name))


def features(chosen: Backend) -> frozenset[str]:
    """What a backend can do besides plain attention (see `Backend`)."""
    return getattr(chosen, "features", frozenset)()


def backend_of(model: PreTrainedModel) -> str:
    """Name of the backend that does what the model's own attention implementation does."""
    implementation = model.config._attn_implementation
    if implementation not in _BACKEND_OF_TRANSFORMERS_NAME:
        raise ValueError(
            f"no backend stands for the attention implementation {implementation!r}; "
            f"choose one of {', '.join(names())}"
        )
    return _BACKEND_OF_TRANSFORMERS_NAME[implementation]
