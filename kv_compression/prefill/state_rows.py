"""Padding that follows tokens, as between a document and its question, enters no state.

A state goes on from token to token, so what stands between two of them would change it. Layers with
states therefore take such a chunk row by row, each without its padding.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from kv_compression.cache import PrunedCache
from kv_compression.replacements import replaced_forwards

_WRITERS = ("update_conv_state", "update_recurrent_state")

# Of transformers 5.17: the scan begins anew. A test fails where this is no more.
_UPSTREAM_FAULTS = frozenset({"jamba"})


@contextmanager
def states_row_by_row(
    model: PreTrainedModel, cache: PrunedCache, padding: Sequence[int]
) -> Iterator[None]:
    """In the block each row's first padding[b] tokens of a forward pass its states by.

    Does nothing where there is no such padding, or no state. Raises NotImplementedError where it is
    not known which modules keep the states, and for states that do not go on so.
    """
    if cache.has_states and model.config.model_type in _UPSTREAM_FAULTS:
        raise NotImplementedError(
            f"the states of {type(model).__name__} do not go on with several tokens at once"
        )
    if not any(padding) or not cache.has_states:
        yield
        return
    modules = [module for module in model.modules() if _keeps_a_state(module)]
    if not modules:
        raise NotImplementedError(
            f"where {type(model).__name__} keeps its states is not known, so questions of a batch "
            f"must be equally long; a batch of one can be"
        )
    with replaced_forwards(
        (module, partial(_by_row, module, cache, padding, module.forward)) for module in modules
    ):
        yield


def _keeps_a_state(module: torch.nn.Module) -> bool:
    kind: Any = type(module)  # mypy takes a class of modules for unhashable
    return hasattr(module, "layer_idx") and _writes_states(kind)


@cache
def _writes_states(kind: type) -> bool:
    """Looked up once: reading the source takes 3 ms, and every request asks for every layer."""
    if not kind.__module__.startswith("transformers."):
        return False
    source = inspect.getsource(kind)
    return any(name in source for name in _WRITERS)


def _by_row(
    module: Any,
    cache: PrunedCache,
    padding: Sequence[int],
    forward: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """The module's output, (B, Q, hidden size), zeros for padding; tensors may come in a tuple."""
    layer: Any = cache.layers[module.layer_idx]
    assert isinstance(layer, LinearAttentionCacheLayerMixin)
    batch, whole = len(padding), (layer.conv_states, layer.recurrent_states)
    shape = next(value.shape[:2] for value in (*args, *kwargs.values()) if _is_hidden(value, batch))
    output: torch.Tensor | None = None
    rest: tuple[Any, ...] | None = None
    try:
        for row, first in enumerate(padding):
            if first >= shape[1]:
                continue
            # Views: states are written in place.
            layer.conv_states, layer.recurrent_states = (
                {
                    place: None if state is None else state[row, None]
                    for place, state in kind.items()
                }
                for kind in whole
            )
            result = forward(
                *(_of_row(value, row, first, shape) for value in args),
                **{name: _of_row(value, row, first, shape) for name, value in kwargs.items()},
            )
            if isinstance(result, tuple):
                result, rest = result[0], result[1:]
            if output is None:
                output = result.new_zeros(*shape, result.shape[-1])
            output[row, None, first:] = result
    finally:
        layer.conv_states, layer.recurrent_states = whole
    return output if rest is None else (output, *rest)


def _is_hidden(value: Any, batch: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 3 and value.shape[0] == batch


def _of_row(value: Any, row: int, first: int, shape: torch.Size) -> Any:
    if isinstance(value, tuple):
        return tuple(_of_row(one, row, first, shape) for one in value)
    if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[1] == shape[1]:
        return value[row if value.shape[0] == shape[0] else 0, None, first:]
    return value
