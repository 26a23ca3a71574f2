"""For the duration of a block, put another attention or other forwards into a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel


@contextmanager
def attention_function(
    model: PreTrainedModel, name: str, function: Callable[..., Any]
) -> Iterator[None]:
    """Let `model` attend through `function`, registered as `name`, in the block.

    Raises ValueError when the model does not take its attention from transformers'
    AttentionInterface.
    """
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


@contextmanager
def replaced_forwards(
    pairs: Iterable[tuple[torch.nn.Module, Callable[..., Any]]],
) -> Iterator[None]:
    """In the block each module's forward is the function beside it.

    A forward that was itself a replacement is put back as it was.
    """
    pairs = list(pairs)
    before = [module.__dict__.get("forward") for module, _ in pairs]
    for module, forward in pairs:
        module.forward = forward
    try:
        yield
    finally:
        for (module, _), replaced in zip(pairs, before, strict=True):
            del module.forward
            if replaced is not None:
                module.forward = replaced
