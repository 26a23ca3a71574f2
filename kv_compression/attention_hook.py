"""The hook into transformers: a backend and a cache put in place for the duration of a block.

Transformers builds one mask for all layers from the first layer's length, which is wrong as soon
as layers store different numbers of tokens. So no mask comes from there: the cache knows for every
layer where each row's tokens begin, and that, with causality counted from the end, is the whole
mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from kv_compression import methods
from kv_compression.attention import Backend, backend
from kv_compression.cache import PrunedCache
from kv_compression.layer import PrunedLayer
from kv_compression.layout import Layout
from kv_compression.replacements import attention_function
from kv_compression.rope_length import each_row_by_its_length
from kv_compression.rotary import Rotary, rotations

# Transformers gives special meanings to names that hold "flash" or "/".
_REGISTERED_NAME = "kv_compression"

# The chunks of a long prompt come back in every layer; those of decode steps never do.
_MOST_LAYOUTS = 128


@dataclass
class _Active:
    """What `use_attention` has put in place."""

    backend: Backend
    cache: PrunedCache
    rotations: dict[int, Rotary | None]  # by the id of the attention module
    kernels: dict[str, set[str]]
    current: dict[tuple[int, ...] | None, Layout] = field(default_factory=dict)
    layouts: dict[Layout, Layout] = field(default_factory=dict)

    def layer_of(self, module: torch.nn.Module) -> PrunedLayer:
        """The cache's layer that `module` attends to: the one that was written to last.

        Raises NotImplementedError where another module has done so, and pruning changed it since.
        """
        layer = self.cache.newest
        assert layer is not None
        layer.reader = layer.reader or id(module)
        if layer.reader != id(module) and any(other.pruning for other in self.cache.layers):
            raise NotImplementedError(
                f"{type(module).__name__} reads the keys of another layer: no pruning"
            )
        return layer

    def attend(
        self,
        layer: PrunedLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """The output, (B, Q, Hq, D); zeros for the queries whose output nothing reads."""
        is_last = layer is self.cache.layers[-1]
        if is_last and self.cache.incoming.last_query_only and query.shape[2] > 1:
            last = query[:, :, -1:]
            # Not noted in `kernels`: one row's kernel is not the one that does the prefill.
            row, _ = self.backend.attend(last, key, value, self._layout(layer, last, key), scaling)
            batch, heads, query_len, _ = query.shape
            output = row.new_zeros(batch, query_len, heads, row.shape[-1])
            output[:, -1:] = row
            return output
        layout = self._layout(layer, query, key)
        output, kernel = self.backend.attend(query, key, value, layout, scaling)
        self.kernels["prefill" if query.shape[2] > 1 else "decode"].add(kernel)
        # As transformers' own functions return it: some models only take another view of it.
        return output.contiguous()

    def _layout(self, layer: PrunedLayer, query: torch.Tensor, key: torch.Tensor) -> Layout:
        """The layer's layout, shared by all layers that have the same one."""
        left_padding = layer.read_left_padding
        wanted = Layout(left_padding, query.shape[2], key.shape[2], query.device)
        before = self.current.get(left_padding)
        if before != wanted:
            if before is not None:
                # Of all pairs, so too large to keep for the next layer's chunks.
                before.drop_mask()
            if len(self.layouts) >= _MOST_LAYOUTS:
                self.layouts.clear()
            self.current[left_padding] = self.layouts.setdefault(wanted, wanted)
        return self.current[left_padding]


_ACTIVE: ContextVar[_Active | None] = ContextVar("active attention", default=None)


@contextmanager
def use_attention(
    model: PreTrainedModel, chosen: str | Backend, cache: PrunedCache
) -> Iterator[dict[str, set[str]]]:
    """Let `model` attend through the backend `chosen`, or of that name, over `cache` in the block.

    Yields the kernels that ran, a set under "prefill" (more than one query token) and one under
    "decode". The model's own attention implementation is put back at the end. Raises ValueError
    when the backend cannot run on the model's device and dtype, when the model does not take its
    attention from transformers' AttentionInterface, and for what `rope_length` and `methods` have
    against the model and the cache's pruning (`reason_unsupported` in each).
    """
    chosen = backend(chosen) if isinstance(chosen, str) else chosen
    chosen.check(model.device.type, model.dtype)
    pruning = next((layer.pruning for layer in cache.layers if layer.pruning), None)
    if pruning and (problem := methods.reason_unsupported(pruning.method, model)):
        raise ValueError(problem)
    kernels: dict[str, set[str]] = {"prefill": set(), "decode": set()}
    needs_rotation = any(layer.needs_rotation for layer in cache.layers)
    active = _Active(chosen, cache, rotations(model) if needs_rotation else {}, kernels)
    with (
        each_row_by_its_length(model, cache),
        attention_function(model, _REGISTERED_NAME, _forward),
    ):
        token = _ACTIVE.set(active)
        try:
            yield active.kernels
        finally:
            _ACTIVE.reset(token)


def _forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every attention layer; query (B, Hq, Q, D)."""
    active = _ACTIVE.get()
    if active is None or attention_mask is not None:
        raise RuntimeError("call the model inside `use_attention`, without an attention mask")
    layer = active.layer_of(module)
    _refuse_unsupported(module, layer, kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = active.attend(layer, query, key, value, scaling)
    layer.prune_if_due(query, scaling, active.rotations.get(id(module)))
    return output, None


def _refuse_unsupported(
    module: torch.nn.Module, layer: PrunedLayer, kwargs: dict[str, Any]
) -> None:
    """Raises NotImplementedError for what a layer asks of its attention that no backend does."""
    is_causal = kwargs.get("is_causal")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise NotImplementedError("the model attends both ways; only causal models are supported")
    refuse_window(kwargs.get("sliding_window"), layer.seen_tokens)
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"the model's attention needs {name!r}, not supported here")


def refuse_window(window: int | None, tokens: int) -> None:
    """Raises NotImplementedError where `tokens` reach beyond a model's sliding window."""
    if window is not None and tokens > window:
        raise NotImplementedError(
            f"the model attends through a sliding window of {window} tokens, which is shorter "
            f"than this prompt and its answer; only full attention is supported"
        )
