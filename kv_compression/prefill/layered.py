"""Prefill one layer at a time over chunks of rows, so that little exists at once besides the cache.

A layer's prompt is written chunk by chunk and pruned before the next layer begins, so that the
full-length keys and values of one layer exist, and intermediates of one chunk. Each chunk attends
to all the tokens before it: the result is that of the whole prefill.

The model's own forward runs as it is; only its decoder layers are called chunk by chunk, which
each of them takes as a prompt that comes in parts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from kv_compression.cache import PrunedCache
from kv_compression.prefill.last_layer import is_known
from kv_compression.replacements import replaced_forwards

# At 2,048 rows the products are about as fast as at more, and a 7B model's MLP needs 0.2 GB.
MLP_ROWS = 2048

# Of transformers 5.17. A test fails where one is no more.
_UPSTREAM_FAULTS = {
    "jamba": "its states do not go on with several tokens at once",
    "olmo_hybrid": "its layers take their states for those of its last layer",
}


def reason_unsupported(model: PreTrainedModel) -> str | None:
    """Why `model` cannot be prefilled one layer at a time, in a few words; None where it can."""
    name = type(model).__name__
    # Code that came with a model may do anything between its layers.
    if not type(model).__module__.startswith("transformers.models."):
        return f"{name} is not a class of transformers' own"
    if problem := _UPSTREAM_FAULTS.get(model.config.model_type):
        return problem
    layers = _layers(model)
    if not layers or len(set(map(id, layers))) < len(layers):
        return f"where {name} has its layers is not known"
    if getattr(model, "_tp_size", None) not in (None, 1):
        return "the model is divided among processes"
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        return f"the model lies on {', '.join(sorted(map(str, devices)))}"
    return None


def _layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    for decoder in (model.get_decoder(), getattr(model, "model", None)):
        layers = getattr(decoder, "layers", None)
        if isinstance(layers, torch.nn.ModuleList):
            return list(layers)
    return []


@contextmanager
def layer_by_layer(
    model: PreTrainedModel, cache: PrunedCache, shape: torch.Size, rows: int
) -> Iterator[None]:
    """In the block the model's forward reads a prompt so, and gives its last token's logits alone.

    To be used inside `use_attention` and `last_token_alone`.

    cache: empty.
    shape: (B, S) of the prompt, padded on the left.
    rows: most tokens of all rows together in one chunk; at least one of each is taken. Chunks are
        counted from the start of the padded prompt, so that those of two prompts have equal shapes.
    The forward raises NotImplementedError where layers hand on more than hidden states.
    """
    batch, tokens = shape
    at_once = max(1, rows // batch)
    cache.expect(prompt_tokens=tokens)
    layers = _layers(model)
    pairs = []
    for place, layer in enumerate(layers):
        # Of these it is known that nothing reads the embeddings again.
        in_place = place > 0 or is_known(model)
        call = partial(_in_chunks, layer.forward, at_once, in_place, layer is layers[-1])
        pairs.append((layer, call))
    with replaced_forwards(pairs):
        yield


def _in_chunks(
    forward: Callable[..., Any],
    at_once: int,
    in_place: bool,
    is_last: bool,
    hidden: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """A layer's output, (B, S, hidden size); of the last layer, of the last token alone.

    As a tuple where the layer returns one.
    """
    tokens = hidden.shape[1]
    output = hidden if in_place else torch.empty_like(hidden)
    rest: tuple[None, ...] | None = None
    for first in range(0, tokens, at_once):
        chunk = slice(first, first + at_once)
        part = forward(
            hidden[:, chunk],
            *(_part(value, tokens, chunk) for value in args),
            **{name: _part(value, tokens, chunk) for name, value in kwargs.items()},
        )
        if isinstance(part, tuple):
            part, *others = part
            rest = tuple(others)
        if rest and any(other is not None for other in rest):
            raise NotImplementedError("its layers hand on more than hidden states")
        if is_last:
            output = part[:, -1:].clone()
        else:
            output[:, chunk] = part
    return output if rest is None else (output, *rest)


def _part(value: Any, tokens: int, chunk: slice) -> Any:
    """What of an argument belongs to a chunk of the `tokens`: tensors are cut along them."""
    if isinstance(value, (tuple, list)):
        return type(value)(_part(one, tokens, chunk) for one in value)
    if isinstance(value, dict):
        return {name: _part(one, tokens, chunk) for name, one in value.items()}
    if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[1] == tokens:
        return value[:, chunk]
    return value
