"""A model's attention, put in another's hands for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Whoever only compares runs need not wait for it.
    from transformers import PreTrainedModel


@contextmanager
def attention_function(
    model: PreTrainedModel, name: str, function: Callable[..., Any]
) -> Iterator[None]:
    """Let `model` attend through `function`, registered as `name`, in the block.

    Raises ValueError when the model does not take its attention from transformers'
    AttentionInterface.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(name, function)
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        if model.config._attn_implementation != name:
            raise ValueError(f"{type(model).__name__} does not let its attention be chosen")
        yield
    finally:
        model.set_attn_implementation(before)
        # What is registered lives as long as the process, and `function` may hold a model.
        AttentionInterface.register(name, _outside)


def _outside(*_: Any, **__: Any) -> Any:
    raise RuntimeError("call the model inside `use_attention`, or choose another attention")
