"""In the last layer a prompt needs its keys and values; all else only for its last token.

Nothing reads what the last layer makes of the tokens before, so attention (`attention_hook`),
the output projection and the MLP leave them out. The logits stay the same, up to the rounding of
products of another height.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from kv_compression.cache import PrunedCache
from kv_compression.replacements import replaced_forwards

_KNOWN = ("llama", "mistral", "phi3", "qwen2", "qwen3")
_MODULES = {f"transformers.models.{name}.modeling_{name}" for name in _KNOWN}


def is_known(model: PreTrainedModel) -> bool:
    """Whether the model's forward is known: embed, layers, norm, head, and nothing besides."""
    # A subclass elsewhere, such as code that came with a model, may do anything.
    return {type(model).__module__, type(model.base_model).__module__} <= _MODULES


@contextmanager
def last_token_alone(model: PreTrainedModel, cache: PrunedCache) -> Iterator[None]:
    """In the block the last layer's output is right for the last token of each row, else useless.

    Models whose layers are not known to do no more with it are left as they are.
    """
    if not is_known(model):
        yield
        return
    base: Any = model.base_model
    layer = base.layers[-1]
    modules = (layer.self_attn.o_proj, layer.mlp)
    cache.expect(last_query_only=True)
    try:
        with replaced_forwards((module, partial(_last_row, module.forward)) for module in modules):
            yield
    finally:
        cache.expect(last_query_only=False)


def _last_row(
    forward: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor
) -> torch.Tensor:
    """hidden (B, Q, N) -> (B, Q, M), zeros but for the last row."""
    last = forward(hidden[:, -1:])
    if hidden.shape[1] == 1:
        return last
    output = last.new_zeros(*hidden.shape[:2], last.shape[-1])
    output[:, -1:] = last
    return output
