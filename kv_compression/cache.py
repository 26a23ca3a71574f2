"""A KV cache that prunes each layer as soon as its prefill is done, and `l2_compress`.

Three lengths that must not be confused: the tokens a layer has *seen* (positions count these), the
tokens it *stores* (its tensors' length; skipped layers differ from pruned ones), and the *padded*
length of a batch. In every layer a row's padding stands before its tokens, so one number a row,
its left padding, says where they begin; pruning keeps it so.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, QuantizedLayer

from kv_compression.incoming import NOTHING_SPECIAL
from kv_compression.layer import PrunedLayer
from kv_compression.measure import Stopwatch
from kv_compression.methods.l2 import Method as L2
from kv_compression.pruning import Pruning, check_skip_layers
from kv_compression.selection import padding_or_none
from kv_compression.storage import KeyValue


class PrunedCache(DynamicCache):
    """A cache of `num_layers` PrunedLayers, to be used with `attention_hook.use_attention`.

    newest: the layer that was written to last, or None.
    incoming: what the next forwards bring (see `expect`).
    prompt_lengths: for each row the tokens of its whole prompt, or None where that is not known.
    answer_tokens: how many came after it in each row; counted for rotations that depend on the
        length (see `rope_length`).
    The other arguments are those of PrunedLayer; layers in `pruning.skip_layers` store everything.
    Raises ValueError when `skip_layers` names a layer that does not exist, and for `prune_every`
    together with `kv_bits`.
    """

    layers: list[PrunedLayer]  # type: ignore[assignment]

    def __init__(
        self,
        num_layers: int,
        pruning: Pruning | None = None,
        left_padding: tuple[int, ...] | None = None,
        reserve_tokens: int = 0,
        stopwatch: Stopwatch | None = None,
        kv_bits: int | None = None,
        prompt_lengths: list[int] | None = None,
    ):
        if kv_bits is not None and pruning is not None and pruning.prune_every is not None:
            raise ValueError("a quantized cache is not pruned again: prune_every excludes kv_bits")
        check_skip_layers(pruning.skip_layers if pruning else (), num_layers)
        layers = [
            PrunedLayer(
                None if pruning is None or layer_idx in pruning.skip_layers else pruning,
                left_padding,
                reserve_tokens,
                stopwatch,
                layer_idx,
                kv_bits,
            )
            for layer_idx in range(num_layers)
        ]
        Cache.__init__(self, layers=layers)  # type: ignore[arg-type]
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
        self.newest = self.layers[layer_idx]
        return self.newest.update(key_states, value_states, incoming=self.incoming)

    def hide(self, rows: Sequence[int]) -> None:
        """Let the tokens to come see nothing of what these rows of the batch store."""
        for layer in self.layers:
            left_padding = list(layer.left_padding or (0,) * layer.keys.shape[0])
            for row in rows:
                left_padding[row] = layer.stored_tokens
            layer.left_padding = padding_or_none(left_padding)

    def expect(self, **changes: Any) -> None:
        """Say what of the next forwards is no longer as before: fields of `Incoming`."""
        self.incoming = replace(self.incoming, **changes)

    def stored_bytes(self) -> int:
        """Bytes of the keys and values that are stored; room reserved for later is not counted."""
        return sum(layer.storage.nbytes for layer in self.layers if layer.storage is not None)


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

    Raises ValueError for arguments out of range and for a cache with sliding-window or other
    layers that do not hold every token as it was.
    """
    pruning = Pruning(L2(keep), keep_ratio, prune_after, tuple(skip_layers))
    if isinstance(past_key_values, Cache):
        stored = [_stored(cache_layer) for cache_layer in past_key_values.layers]
    else:
        stored = [(key, value, None, key.shape[2]) for key, value, *_ in past_key_values]
    check_skip_layers(pruning.skip_layers, len(stored))

    layers = []
    for layer_idx, (key, value, left_padding, seen_tokens) in enumerate(stored):
        layer = PrunedLayer(None if layer_idx in pruning.skip_layers else pruning, left_padding)
        layer.update(key, value)
        layer.prune_if_due()
        layer.seen_tokens = seen_tokens
        layers.append(layer)
    same_length = len({layer.stored_tokens for layer in layers}) == 1
    for layer in layers:
        layer.same_length = same_length
    if isinstance(past_key_values, Cache):
        compressed = copy.copy(past_key_values)
        compressed.layers = [*layers]
        return compressed
    result = [(layer.keys, layer.values) for layer in layers]
    return tuple(result) if isinstance(past_key_values, tuple) else result


def _stored(layer: object) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...] | None, int]:
    """Keys, values, padding and tokens seen. Raises ValueError for a layer that lacks tokens."""
    is_whole = isinstance(layer, DynamicLayer) and not layer.is_sliding
    if not is_whole or isinstance(layer, QuantizedLayer) or getattr(layer, "kv_bits", None):
        kind = "quantized layer" if is_whole else type(layer).__name__
        raise ValueError(f"l2_compress cannot prune a {kind}")
    assert isinstance(layer, DynamicLayer)
    assert layer.keys is not None
    assert layer.values is not None
    return layer.keys, layer.values, getattr(layer, "left_padding", None), layer.get_seq_length()
