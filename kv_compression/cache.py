"""A KV cache that prunes each layer as soon as its prefill is done, and `l2_compress`.

Three lengths that must not be confused: the tokens a layer has *seen* (positions count these), the
tokens it *stores* (its tensors' length; skipped layers differ from pruned ones), and the *padded*
length of a batch. In every layer a row's padding stands before its tokens, so one number a row,
its start, says where they begin; pruning keeps it so.
"""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import overload

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from kv_compression.measure import Stopwatch
from kv_compression.methods import PrefilledLayer
from kv_compression.methods.l2 import Method as L2
from kv_compression.pruning import Pruning, check_skip_layers
from kv_compression.selection import leading, select

KeyValue = tuple[torch.Tensor, torch.Tensor]


class PrunedLayer(DynamicLayer):
    """One layer's keys and values, (B, H, S, D) each, pruned once, after the first write.

    pruning: None stores everything.
    starts: for each row of the batch the number of padding tokens before its first token, or None.
    reserve_tokens: tokens that will be appended later; room for them is allocated once, so that no
        step copies the cache.
    chunk_padding: set it before an `update` whose tokens are padded on the left: for each row the
        number of padding tokens before its new tokens.
    stopwatch: where the time spent on pruning is added up.
    """

    def __init__(
        self,
        pruning: Pruning | None = None,
        starts: tuple[int, ...] | None = None,
        reserve_tokens: int = 0,
        stopwatch: Stopwatch | None = None,
        layer_idx: int = 0,
    ):
        super().__init__()
        self.layer_idx = layer_idx
        self.keys: torch.Tensor
        self.values: torch.Tensor
        self.pruning = pruning
        self.starts = starts
        self.reserve_tokens = reserve_tokens
        self.stopwatch = stopwatch
        self.seen_tokens = 0
        self.chunk_padding: tuple[int, ...] | None = None
        self._key_buffer: torch.Tensor | None = None
        self._value_buffer: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> KeyValue:
        """Append tokens, (B, H, Q, D) each; returns all keys and values that are now stored."""
        new_tokens = key_states.shape[2]
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
            # Not copied yet: `settle` stores what stays, once attention has seen everything.
            self.keys, self.values = key_states, value_states
        else:
            stored = self.keys.shape[2]
            if self._key_buffer is None or self._key_buffer.shape[2] < stored + new_tokens:
                self._store(self.keys, self.values, room=max(new_tokens, self.reserve_tokens))
            self._view(stored + new_tokens)
            self.keys[:, :, stored:] = key_states
            self.values[:, :, stored:] = value_states
            if self.chunk_padding is not None:
                self._close_gaps(stored, self.chunk_padding)
        self.seen_tokens += new_tokens
        return self.keys, self.values

    def _close_gaps(self, stored: int, chunk_padding: tuple[int, ...]) -> None:
        """Move each row's earlier tokens up to its new ones; what was between goes in front."""
        for row, gap in enumerate(chunk_padding):
            for tensor in (self.keys, self.values):
                part = tensor[row, :, : stored + gap]
                part.copy_(part.roll(gap, dims=1))
        starts = self.starts or (0,) * len(chunk_padding)
        self.starts = leading([a + b for a, b in zip(starts, chunk_padding, strict=True)])
        self.chunk_padding = None

    def settle(self, queries: torch.Tensor | None = None, scaling: float = 1.0) -> None:
        """Prune and store what the first `update` wrote; call it when attention has read it.

        queries (B, Hq, Q, D) and scaling are attention's own, for methods that score by it. Later
        calls do nothing.
        """
        if self._key_buffer is not None:
            return
        batch, _, stored, head_dim = self.keys.shape
        starts = self.starts or (0,) * batch
        lengths = [stored - start for start in starts]
        counts = lengths if self.pruning is None else self.pruning.counts(lengths)
        if counts == lengths:
            self._store(self.keys, self.values, room=self.reserve_tokens)
            return
        assert self.pruning is not None
        timing = self.stopwatch.running(self.keys.device) if self.stopwatch else nullcontext()
        with timing:
            layer = PrefilledLayer(
                self.keys, self.values, queries, scaling, self.starts, self.layer_idx
            )
            scores = self.pruning.method.score(layer)
            kept = select(scores, self.starts, counts)
            index = kept.index[..., None].expand(-1, -1, -1, head_dim)
            self.starts = kept.starts
            keys, values = self.keys.gather(2, index), self.values.gather(2, index)
            self._store(keys, values, room=self.reserve_tokens)

    def _store(self, keys: torch.Tensor, values: torch.Tensor, room: int) -> None:
        """Copy into buffers with `room` for more tokens. A view of a larger tensor is let go."""
        batch, heads, stored, head_dim = keys.shape
        self._key_buffer = keys.new_empty(batch, heads, stored + room, head_dim)
        self._value_buffer = values.new_empty(batch, heads, stored + room, values.shape[-1])
        self._key_buffer[:, :, :stored] = keys
        self._value_buffer[:, :, :stored] = values
        self._view(stored)

    def _view(self, stored: int) -> None:
        assert self._key_buffer is not None
        assert self._value_buffer is not None
        self.keys = self._key_buffer[:, :, :stored]
        self.values = self._value_buffer[:, :, :stored]

    def get_seq_length(self) -> int:
        """Tokens seen, padding included: the length that positions and masks count."""
        return self.seen_tokens

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: which of a pruned layer's tokens are the last ones seen is no longer known."""
        raise NotImplementedError("a pruned cache cannot be cropped")

    def reset(self) -> None:
        """Refused: the layer's padding belongs to one batch; make a new cache for the next."""
        raise NotImplementedError("a pruned cache cannot be reset; make a new one")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times."""
        self.batch_select_indices(
            torch.arange(self.keys.shape[0], device=self.keys.device).repeat_interleave(repeats)
        )

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices` (int64, (B_new,))."""
        if self.starts is not None:
            self.starts = leading([self.starts[row] for row in indices.tolist()])
        self._store(self.keys[indices], self.values[indices], room=self.reserve_tokens)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Reorder the rows for beam search."""
        self.batch_select_indices(beam_idx.to(self.keys.device))


class PrunedCache(DynamicCache):
    """A cache of `num_layers` PrunedLayers, to be used with `attention.use_attention`.

    Arguments are those of PrunedLayer; layers in `pruning.skip_layers` store everything. Raises
    ValueError when `skip_layers` names a layer that does not exist.
    """

    layers: list[PrunedLayer]  # type: ignore[assignment]

    def __init__(
        self,
        num_layers: int,
        pruning: Pruning | None = None,
        starts: tuple[int, ...] | None = None,
        reserve_tokens: int = 0,
        stopwatch: Stopwatch | None = None,
    ):
        check_skip_layers(pruning.skip_layers if pruning else (), num_layers)
        layers = [
            PrunedLayer(
                None if pruning is None or layer_idx in pruning.skip_layers else pruning,
                starts,
                reserve_tokens,
                stopwatch,
                layer_idx,
            )
            for layer_idx in range(num_layers)
        ]
        Cache.__init__(self, layers=layers)  # type: ignore[arg-type]

    def expect(self, padding: Sequence[int]) -> None:
        """Say how many padding tokens stand before each row's tokens in the next forward."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.chunk_padding = leading(padding)

    def stored_bytes(self) -> int:
        """Bytes of the keys and values that are stored; room reserved for later is not counted."""
        return sum(
            tensor.numel() * tensor.element_size()
            for layer in self.layers
            for tensor in (layer.keys, layer.values)
        )


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
        without padding. It is left as it was; what comes back is of the same kind and shares no
        memory with it in the layers that were pruned.
    keep_ratio: share of tokens kept, in (0, 1]; ceil(keep_ratio * S) stay, of equal norms
        the earlier.
    prune_after: a layer with fewer tokens is left whole.
    skip_layers: layers that are left whole.
    keep: "low", or "high" as a control.

    A returned Cache remembers the tokens seen: `get_seq_length()` is still S. Pass `position_ids`
    that go on from there when you decode with it, and note that in a model's own masks layers of
    different length work for one new token at a time only; `generation.generate` has no such limit.

    Raises ValueError for arguments out of range and for a cache with sliding-window or other
    layers that do not hold every token.
    """
    pruning = Pruning(L2(keep), keep_ratio, prune_after, tuple(skip_layers))
    pairs: list[KeyValue] = []
    seen: list[int] = []
    if isinstance(past_key_values, Cache):
        for cache_layer in past_key_values.layers:
            if not isinstance(cache_layer, DynamicLayer) or cache_layer.is_sliding:
                raise ValueError(f"l2_compress cannot prune a {type(cache_layer).__name__}")
            assert cache_layer.keys is not None
            assert cache_layer.values is not None
            pairs.append((cache_layer.keys, cache_layer.values))
            seen.append(cache_layer.get_seq_length())
    else:
        pairs = [(key, value) for key, value, *_ in past_key_values]
        seen = [key.shape[2] for key, _ in pairs]
    check_skip_layers(pruning.skip_layers, len(pairs))

    layers = []
    for layer_idx, (key, value) in enumerate(pairs):
        layer = PrunedLayer(None if layer_idx in pruning.skip_layers else pruning)
        layer.update(key, value)
        layer.settle()
        layer.seen_tokens = seen[layer_idx]
        layers.append(layer)
    if isinstance(past_key_values, Cache):
        compressed = copy.copy(past_key_values)
        compressed.layers = [*layers]
        return compressed
    result = [(layer.keys, layer.values) for layer in layers]
    return tuple(result) if isinstance(past_key_values, tuple) else result
