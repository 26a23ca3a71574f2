"""Attention backends, one file each, right for every shape that a pruned cache brings about.

A backend file defines what `Backend` says; an object that does the same can stand in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from kv_compression import plugins

if TYPE_CHECKING:
    # Whoever asks for the backends' names need not wait for these.
    import torch
    from transformers import PreTrainedModel

    from kv_compression.layout import Layout

_BACKEND_OF_TRANSFORMERS_NAME = {
    "eager": "eager",
    "sdpa": "sdpa",
    "flash_attention_2": "flash2",
    "flex_attention": "flex",
}


class Backend(Protocol):
    """What computes attention: a module of this package, or an object."""

    def check(self, device_type: str, dtype: torch.dtype) -> None:
        """Raises ValueError when the backend cannot run there."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: Layout,
        scaling: float,
    ) -> tuple[torch.Tensor, str]:
        """The output, (B, Q, Hq, D), and the name of the kernel that ran.

        query (B, Hq, Q, D), key and value (B, H, S, D).
        """


def names() -> tuple[str, ...]:
    """Every backend's name."""
    return plugins.names(__name__)


def backend(name: str) -> Backend:
    """The backend module `name`. Raises ValueError for an unknown name."""
    return cast(Backend, plugins.load(__name__, name))


def backend_of(model: PreTrainedModel) -> str:
    """Name of the backend that does what the model's own attention implementation does."""
    implementation = model.config._attn_implementation
    if implementation not in _BACKEND_OF_TRANSFORMERS_NAME:
        raise ValueError(
            f"no backend stands for the attention implementation {implementation!r}; "
            f"choose one of {', '.join(names())}"
        )
    return _BACKEND_OF_TRANSFORMERS_NAME[implementation]
