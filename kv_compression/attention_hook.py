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

from kv_compression import budgets, methods
from kv_compression.attended import Attended
from kv_compression.attention import Backend, backend, features, names
from kv_compression.cache import PrunedCache
from kv_compression.layer import PrunedLayer
from kv_compression.layout import Layout
from kv_compression.projection import output_weight
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
    current: dict[tuple[tuple[int, ...] | None, int | None], Layout] = field(default_factory=dict)
    layouts: dict[Layout, Layout] = field(default_factory=dict)

    def layer_of(self, module: torch.nn.Module) -> PrunedLayer:
        """The cache's layer that `module` attends to: the one that was written to last.

        Raises NotImplementedError where another module has done so, and pruning changed it since.
        """
        layer = self.cache.newest
        assert layer is not None
        layer.reader = layer.reader or id(module)
        is_pruned = any(other.pruning for other in self.cache.attention_layers)
        if layer.reader != id(module) and is_pruned:
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
        extras: dict[str, Any],
    ) -> torch.Tensor:
        """The output, (B, Q, Hq, D); zeros for the queries whose output nothing reads.

        extras: `softcap` and `sinks`, where the model asks for them (see `Backend`).
        """
        is_last = layer is self.cache.attention_layers[-1] and layer.kind.is_full
        if is_last and self.cache.incoming.last_query_only and query.shape[2] > 1:
            last = query[:, :, -1:]
            # Not noted in `kernels`: one row's kernel is not the one that does the prefill.
            row, _ = self._one(layer, last, key, value, scaling, extras)
            batch, heads, query_len, _ = query.shape
            output = row.new_zeros(batch, query_len, heads, row.shape[-1])
            output[:, -1:] = row
            return output
        output, kernel = self._one(layer, query, key, value, scaling, extras)
        self.kernels["prefill" if query.shape[2] > 1 else "decode"].add(kernel)
        # As transformers' own functions return it: some models only take another view of it.
        return output.contiguous()

    def _one(
        self,
        layer: PrunedLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        extras: dict[str, Any],
    ) -> tuple[torch.Tensor, str]:
        """The output, (B, Q, Hq, D), and the kernel that ran."""
        if layer.kind.chunk is not None:
            return self._in_text_chunks(layer, query, key, value, scaling, extras)
        if layer.ragged is not None:
            return self._by_head(layer, query, scaling, extras)
        layout = self._layout(layer, query, key)
        return self.backend.attend(query, key, value, layout, scaling, **extras)

    def _in_text_chunks(
        self,
        layer: PrunedLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        extras: dict[str, Any],
    ) -> tuple[torch.Tensor, str]:
        """The same where a text falls into chunks that see nothing of each other.

        Each chunk is causal attention of its own, so no backend need know of it.
        """
        assert layer.kind.chunk is not None
        batch, query_heads, query_len, _ = query.shape
        stored = key.shape[2]
        output = query.new_zeros(batch, query_len, query_heads, value.shape[-1])
        kernel = ""
        for row in range(batch):
            positions = layer.positions_of(row, stored)
            first = max(stored - query_len, -positions.start)  # of the row's queries
            while first < stored:
                chunk = positions[first] // layer.kind.chunk
                begin = max(0, chunk * layer.kind.chunk - positions.start)
                end = min(stored, (chunk + 1) * layer.kind.chunk - positions.start)
                queries = slice(first - stored + query_len, end - stored + query_len)
                parts = query[row, None, :, queries], key[row, None, :, begin:end]
                layout = Layout(None, end - first, end - begin, query.device)
                output[row, None, queries], kernel = self.backend.attend(
                    *parts, value[row, None, :, begin:end], layout, scaling, **extras
                )
                first = end
        return output, kernel

    def _by_head(
        self, layer: PrunedLayer, query: torch.Tensor, scaling: float, extras: dict[str, Any]
    ) -> tuple[torch.Tensor, str]:
        """The same where heads store different numbers of tokens: each by itself.

        So every backend reads what is stored where it lies, and no head another one's padding.
        """
        assert layer.ragged is not None
        batch, query_heads, query_len, _ = query.shape
        heads, new_tokens = layer.values.shape[1:3]
        group = query_heads // heads
        output = query.new_zeros(batch, query_len, query_heads, layer.values.shape[-1])
        sinks, kernel = extras.get("sinks"), ""
        for row, padding in enumerate(self.cache.incoming.left_padding or (0,) * batch):
            first = max(0, padding - (new_tokens - query_len))  # of the row's queries
            if first == query_len:
                continue
            for head in range(heads):
                mine = slice(head * group, (head + 1) * group)
                key, value = layer.ragged.read(row, head)
                if sinks is not None:
                    extras = {**extras, "sinks": sinks[mine]}
                states = query[row, None, mine, first:]
                layout = Layout(None, query_len - first, key.shape[2], query.device)
                output[row, None, first:, mine], kernel = self.backend.attend(
                    states, key, value, layout, scaling, **extras
                )
        return output, kernel

    def _layout(self, layer: PrunedLayer, query: torch.Tensor, key: torch.Tensor) -> Layout:
        """The layer's layout, shared by all layers that have the same one."""
        left_padding, window = layer.read_left_padding, layer.kind.window
        if query.shape[2] == 1 or (window is not None and key.shape[2] <= window):
            window = None  # nothing that is read lies outside of it
        wanted = Layout(left_padding, query.shape[2], key.shape[2], query.device, window)
        before = self.current.get((left_padding, window))
        if before != wanted:
            if before is not None:
                # Of all pairs, so too large to keep for the next layer's chunks.
                before.drop_mask()
            if len(self.layouts) >= _MOST_LAYOUTS:
                self.layouts.clear()
            self.current[left_padding, window] = self.layouts.setdefault(wanted, wanted)
        return self.current[left_padding, window]


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
    pruning = next((layer.pruning for layer in cache.attention_layers if layer.pruning), None)
    if pruning and (
        problem := methods.reason_unsupported(pruning.method, model)
        or budgets.reason_unsupported(pruning.budget, model)
    ):
        raise ValueError(problem)
    kernels: dict[str, set[str]] = {"prefill": set(), "decode": set()}
    needs_rotation = any(layer.needs("rotation") for layer in cache.attention_layers)
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
    extras = _extras(module, active, layer, kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = active.attend(layer, query, key, value, scaling, extras)
    # Latent attention stores what keys and values are made of.
    made = None if key.shape == layer.keys.shape else (key, value)
    weight = output_weight(module) if layer.needs("output_weight") else None
    rotary = active.rotations.get(id(module))
    layer.prune_if_due(Attended(query, scaling, rotary, made, weight))
    return output, None


def _extras(
    module: torch.nn.Module, active: _Active, layer: PrunedLayer, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """What a layer asks of its attention besides the plain one.

    Raises NotImplementedError for what the backend does not do.
    """
    is_causal = kwargs.get("is_causal")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise NotImplementedError("the model attends both ways; only causal models are supported")
    given = {"softcap": kwargs.get("softcap"), "sinks": kwargs.get("s_aux")}
    extras = {name: value for name, value in given.items() if value is not None}
    asked = set(extras) | ({"window"} if layer.kind.window is not None else set())
    if missing := asked - features(active.backend):
        name = getattr(active.backend, "__name__", type(active.backend).__name__)
        others = [other for other in names() if asked <= features(backend(other))]
        raise NotImplementedError(
            f"the model's attention needs {' and '.join(sorted(missing))}, which "
            f"{name.rpartition('.')[2]} does not do; {' and '.join(others) or 'no backend'} can"
        )
    return extras
