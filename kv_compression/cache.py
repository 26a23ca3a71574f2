"""A KV cache that prunes each layer as soon as its prefill is done, and `l2_compress`.

Three lengths that must not be confused: the tokens a layer has *seen* (positions count these), the
tokens it *stores* (its tensors' length; skipped layers differ from pruned ones), and the *padded*
length of a batch. In every layer a row's padding stands before its tokens, so one number a row,
its left padding, says where they begin; pruning keeps it so.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
    QuantizedLayer,
)

from kv_compression.incoming import NOTHING_SPECIAL
from kv_compression.layer import PrunedLayer, PrunedLayerWithState
from kv_compression.layer_kinds import FULL, LayerKind
from kv_compression.measure import Stopwatch
from kv_compression.methods.l2 import Method as L2
from kv_compression.model_pool import ModelPool
from kv_compression.pruning import Pruning, check_skip_layers
from kv_compression.selection import padding_or_none
from kv_compression.storage import KeyValue


@dataclass(frozen=True)
class CacheBytes:
    """Bytes that a cache holds, by what its layers keep; room reserved for later is not counted.

    full: keys and values of layers that attend to all of the text.
    window: of layers with a window or chunks.
    state: convolution and recurrent states.
    unpruned: what the layers of `full` would hold of a prompt that nothing was removed from, in
        the model's own dtype.
    """

    full: int
    window: int
    state: int
    unpruned: int

    @property
    def total(self) -> int:
        """What is held."""
        return self.full + self.window + self.state

    @property
    def kept_share(self) -> float:
        """Share of a full cache's bytes that is held, windows and states included."""
        return self.total / (self.unpruned + self.window + self.state)


class PrunedCache(DynamicCache):
    """A cache of PrunedLayers, to be used with `attention_hook.use_attention`.

    kinds: of each layer (see `layer_kinds`), or how many layers there are that attend to all of
        the text. Those are pruned and quantized; windows and states stay what they are.
    attention_layers: the layers that store tokens.
    newest: the layer that was written to last, or None.
    incoming: what the next forwards bring (see `expect`).
    prompt_lengths: for each row the tokens of its whole prompt, or None where that is not known.
    answer_tokens: how many came after it in each row; counted for rotations that depend on the
        length (see `rope_length`).
    The other arguments are those of PrunedLayer; layers in `pruning.skip_layers` store everything.
    Raises ValueError when `skip_layers` names a layer that does not exist, and for `prune_every`
    together with `kv_bits`, or with a
    budget that layers compete for.
    """

    layer_class: type[PrunedLayer] = PrunedLayer
    """Of layers without a state."""

    def __init__(
        self,
        kinds: int | Sequence[LayerKind],
        pruning: Pruning | None = None,
        left_padding: tuple[int, ...] | None = None,
        reserve_tokens: int = 0,
        stopwatch: Stopwatch | None = None,
        kv_bits: int | None = None,
        prompt_lengths: list[int] | None = None,
    ):
        if kv_bits is not None and pruning is not None and pruning.prune_every is not None:
            raise ValueError("a quantized cache is not pruned again: prune_every excludes kv_bits")
        if pruning is not None and pruning.budget.pool == "model" and pruning.prune_every:
            raise ValueError("layers compete for tokens once: prune_every excludes such a budget")
        kinds = [FULL] * kinds if isinstance(kinds, int) else kinds
        skipped = pruning.skip_layers if pruning else ()
        check_skip_layers(skipped, len(kinds))
        pruned = [
            layer_idx
            for layer_idx, kind in enumerate(kinds)
            if pruning is not None and kind.is_full and layer_idx not in skipped
        ]
        pool = ModelPool(len(pruned)) if pruning and pruning.budget.pool == "model" else None
        layers: list[Any] = []
        for layer_idx, kind in enumerate(kinds):
            if not kind.stores_tokens:
                layers.append(LinearAttentionLayer(number_of_states=kind.states))
                continue
            layer_class = PrunedLayerWithState if kind.states else self.layer_class
            place = pruned.index(layer_idx) if layer_idx in pruned else 0
            layers.append(
                layer_class(
                    pruning if layer_idx in pruned else None,
                    left_padding=left_padding,
                    reserve_tokens=reserve_tokens,
                    stopwatch=stopwatch,
                    layer_idx=layer_idx,
                    kv_bits=kv_bits if kind.is_full else None,
                    kind=kind,
                    place=(place, len(pruned)),
                    pool=pool,
                )
            )
        Cache.__init__(self, layers=layers)
        self.attention_layers = [layer for layer in layers if isinstance(layer, PrunedLayer)]
        self.has_states = any(kind.states for kind in kinds)
        self.newest: PrunedLayer | None = None
        self.incoming = NOTHING_SPECIAL
        self.prompt_lengths = prompt_lengths
        self.answer_tokens = 0

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> KeyValue:
        """Append tokens to a layer; returns what it now stores (see `PrunedLayer.update`)."""
        layer = self.layers[layer_idx]
        assert isinstance(layer, PrunedLayer)
        self.newest = layer
        return layer.update(key_states, value_states, incoming=self.incoming)

    def copy(self) -> "PrunedCache":
        """One that can be written to without this one; they share what is the same for both."""
        shared = [
            each for layer in self.attention_layers for each in (layer.stopwatch, layer.pruning)
        ]
        return copy.deepcopy(self, {id(each): each for each in shared if each is not None})

    def hide(self, rows: Sequence[int]) -> None:
        """Let the tokens to come see nothing of what these rows of the batch store."""
        for layer in self.attention_layers:
            left_padding = list(layer.left_padding or (0,) * layer.keys.shape[0])
            for row in rows:
                if layer.ragged is not None:
                    layer.ragged.hide(row)
                else:
                    left_padding[row] = layer.stored_tokens
            layer.left_padding = padding_or_none(left_padding)

    def expect(self, **changes: Any) -> None:
        """Say what of the next forwards is no longer as before: fields of `Incoming`."""
        self.incoming = replace(self.incoming, **changes)

    def stored_bytes(self) -> CacheBytes:
        """What is held, once the prompt was read."""
        full = window = state = unpruned = 0
        for layer in self.attention_layers:
            if layer.kind.is_full:
                full += layer.stored_bytes
                unpruned += layer.unpruned_bytes()
            else:
                window += layer.stored_bytes
        for held_layer in self.layers:
            if isinstance(held_layer, LinearAttentionCacheLayerMixin):
                states = (*held_layer.conv_states.values(), *held_layer.recurrent_states.values())
                state += sum(tensor.nbytes for tensor in states if tensor is not None)
        return CacheBytes(full, window, state, unpruned)


@overload
def l2_compress(
    past_key_values: Cache,
    keep_ratio: float = ...,
    prune_after: int = ...,
    skip_layers: Sequence[int] = ...,
    *,
    keep: str = ...,
) -> Cache: ...
@overload
def l2_compress(
    past_key_values: Sequence[KeyValue],
    keep_ratio: float = ...,
    prune_after: int = ...,
    skip_layers: Sequence[int] = ...,
    *,
    keep: str = ...,
) -> Sequence[KeyValue]: ...
def l2_compress(
    past_key_values: Cache | Sequence[KeyValue],
    keep_ratio: float = 0.7,
    prune_after: int = 512,
    skip_layers: Sequence[int] = (),
    *,
    keep: str = "low",
) -> Cache | Sequence[KeyValue]:
    """Keep the tokens whose keys have the lowest L2 norm (arXiv 2406.11430), in their order.

    past_key_values: a Cache, or a sequence of (key, value) pairs, each (B, H, S, D), one a layer,
        without padding, which only a PrunedCache knows of. It is left as it was; what comes back
        is of the same kind and shares no memory with it in the layers that were pruned.
    keep_ratio: share of tokens kept, in (0, 1]; ceil(keep_ratio * S) stay, of equal norms
        the earlier.
    prune_after: a layer with fewer tokens is left whole.
    skip_layers: layers that are left whole.
    keep: "low", or "high" as a control.

    A returned Cache remembers the tokens seen: `get_seq_length()` is still S, so `model.generate`
    goes on from there when it gets those S tokens and the new ones. Where layers differ in length
    it takes one new token at a time; `kv_compression.generate` has no such limit.

    Layers with a sliding window, and the states of linear layers, are copied as they are. Raises
    ValueError for arguments out of range and for a cache with layers of another kind that do not
    hold every token as it was, such as quantized ones.
    """
    pruning = Pruning(L2(keep), keep_ratio, prune_after, tuple(skip_layers))
    is_cache = isinstance(past_key_values, Cache)
    given: Sequence[Any] = (
        past_key_values.layers if isinstance(past_key_values, Cache) else past_key_values
    )
    check_skip_layers(pruning.skip_layers, len(given))
    layers: list[Any] = []
    for layer_idx, layer in enumerate(given):
        if type(layer) in (DynamicSlidingWindowLayer, LinearAttentionLayer):
            layers.append(copy.deepcopy(layer))
            continue
        stored = _stored(layer) if is_cache else (layer[0], layer[1], None, layer[0].shape[2])
        layer_pruning = None if layer_idx in pruning.skip_layers else pruning
        layers.append(_pruned(layer_pruning, *stored))
    pruned = [layer for layer in layers if isinstance(layer, PrunedLayer)]
    same_length = len({layer.stored_tokens for layer in pruned}) == 1
    for layer in pruned:
        layer.same_length = same_length
    if isinstance(past_key_values, Cache):
        compressed = copy.copy(past_key_values)
        compressed.layers = layers
        return compressed
    result = [(layer.keys, layer.values) for layer in layers]
    return tuple(result) if isinstance(past_key_values, tuple) else result


def _pruned(
    pruning: Pruning | None,
    keys: torch.Tensor,
    values: torch.Tensor,
    left_padding: tuple[int, ...] | None,
    seen_tokens: int,
) -> PrunedLayer:
    layer = PrunedLayer(pruning, left_padding)
    layer.update(keys, values)
    layer.prune_if_due()
    layer.seen_tokens = seen_tokens
    return layer


def _stored(layer: object) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...] | None, int]:
    """Keys, values, padding and tokens seen. Raises ValueError for a layer that lacks tokens."""
    is_whole = isinstance(layer, DynamicLayer) and not layer.is_sliding
    is_whole &= not isinstance(layer, LinearAttentionCacheLayerMixin)
    if not is_whole or isinstance(layer, QuantizedLayer) or getattr(layer, "kv_bits", None):
        kind = "quantized layer" if is_whole else type(layer).__name__
        raise ValueError(f"l2_compress cannot prune a {kind}")
    assert isinstance(layer, DynamicLayer)
    assert layer.keys is not None
    assert layer.values is not None
    return layer.keys, layer.values, getattr(layer, "left_padding", None), layer.get_seq_length()
