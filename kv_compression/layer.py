"""One cache layer that prunes itself: in the prefill, and while it decodes if asked to."""

from contextlib import nullcontext

import torch
from transformers.cache_utils import DynamicLayer

from kv_compression.measure import Stopwatch
from kv_compression.methods import StoredLayer
from kv_compression.pruning import Pruning
from kv_compression.rotary import Rotary
from kv_compression.selection import leading, select
from kv_compression.storage import KeyValue, QuantizedStorage, Storage


class PrunedLayer(DynamicLayer):
    """One layer's keys and values, (B, H, S, D) each, pruned after the first write.

    pruning: None stores everything.
    starts: for each row of the batch the number of padding tokens before its first token, or None.
    reserve_tokens: tokens that will be appended later; room for them is allocated once, so that no
        step copies the cache.
    chunk_padding: set it before an `update` whose tokens are padded on the left: for each row the
        number of padding tokens before its new tokens.
    stopwatch: where the time spent on pruning and quantizing is added up.
    kv_bits: 8 or 4 quantizes what the first write leaves; None for floats.
    """

    def __init__(
        self,
        pruning: Pruning | None = None,
        starts: tuple[int, ...] | None = None,
        reserve_tokens: int = 0,
        stopwatch: Stopwatch | None = None,
        layer_idx: int = 0,
        kv_bits: int | None = None,
    ):
        super().__init__()
        self.layer_idx = layer_idx
        self.keys: torch.Tensor
        self.values: torch.Tensor
        self.pruning = pruning
        self.starts = starts
        self.reserve_tokens = reserve_tokens
        self.stopwatch = stopwatch
        self.kv_bits = kv_bits
        self.seen_tokens = 0
        self.chunk_padding: tuple[int, ...] | None = None
        self.storage: Storage | None = None
        self._lengths: list[int] = []  # of each row, in tokens seen
        self._prompt_lengths: list[int] = []
        self._pruned_at: list[int] = []  # each row's tokens seen when it was last pruned
        self._new_padding: tuple[int, ...] = ()
        self._kept: tuple[torch.Tensor, list[int]] | None = None
        self._queries: torch.Tensor | None = None
        self._query_positions: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> KeyValue:
        """Append tokens, (B, H, Q, D) each; returns all keys and values that are now stored."""
        batch, _, new_tokens, _ = key_states.shape
        nothing = (0,) * batch
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
            # Not copied yet: `settle` stores what stays, once attention has seen everything.
            self.keys, self.values = key_states, value_states
            self._new_padding = self.starts or nothing
            self._lengths = [new_tokens - padding for padding in self._new_padding]
            self._prompt_lengths, self._pruned_at = self._lengths, list(self._lengths)
        else:
            if self.storage is None:
                self.settle()
            assert self.storage is not None
            self.storage.append(key_states, value_states, self.chunk_padding)
            self.keys, self.values = self.storage.read()
            self._new_padding = self.chunk_padding or nothing
            self._lengths = [
                length + new_tokens - padding
                for length, padding in zip(self._lengths, self._new_padding, strict=True)
            ]
            starts = zip(self.starts or nothing, self._new_padding, strict=True)
            self.starts = leading([a + b for a, b in starts])
            self.chunk_padding = None
        self.seen_tokens += new_tokens
        return self.keys, self.values

    @property
    def stored_tokens(self) -> int:
        """Tokens stored, padding included."""
        return self.keys.shape[2] if self.storage is None else self.storage.stored_tokens

    def settle(
        self,
        queries: torch.Tensor | None = None,
        scaling: float = 1.0,
        rotary: Rotary | None = None,
    ) -> None:
        """Prune what is due; call it when attention has read what the last `update` returned.

        queries (B, Hq, Q, D) of the last update's tokens, scaling and rotary are attention's own,
        for methods that score by them.
        """
        self._remember(queries)
        is_prefill = self.storage is None
        lengths = [self.stored_tokens - start for start in self._starts()]
        counts = lengths if self.pruning is None else self._counts(lengths, is_prefill)
        due = counts != lengths
        if due or (is_prefill and self.kv_bits):
            timing = self.stopwatch.running(self.keys.device) if self.stopwatch else nullcontext()
            with timing:
                if due:
                    self._prune(counts, queries, scaling, rotary)
                self._store()
        elif is_prefill:
            self._store()
        elif self.kv_bits:
            # The floats were made for this step's attention.
            self.keys, self.values = self.keys[:, :, :0].clone(), self.values[:, :, :0].clone()

    def _starts(self) -> tuple[int, ...]:
        return self.starts or (0,) * len(self._lengths)

    def _counts(self, lengths: list[int], is_prefill: bool) -> list[int]:
        """How many of each row's `lengths` stored tokens stay."""
        assert self.pruning is not None
        every = self.pruning.prune_every
        if not is_prefill and every is None:
            return lengths
        counts = []
        for row, stored in enumerate(lengths):
            seen, prompt = self._lengths[row], self._prompt_lengths[row]
            due = is_prefill or seen - self._pruned_at[row] >= (every or 0)
            counts.append(min(stored, self.pruning.budget(prompt, seen)) if due else stored)
            if counts[row] < stored:
                self._pruned_at[row] = seen
        return counts

    def _prune(
        self,
        counts: list[int],
        queries: torch.Tensor | None,
        scaling: float,
        rotary: Rotary | None,
    ) -> None:
        """Leave counts[b] tokens of each row in `keys` and `values`."""
        assert self.pruning is not None
        positions = self._positions()
        query_positions = self._query_positions
        if self.storage is None and queries is not None:
            # A prefill is scored by all of its queries, later only the last ones are known.
            query_positions = positions[:, 0, -queries.shape[2] :]
        else:
            queries = self._queries
        stored = StoredLayer(
            self.keys,
            self.values,
            positions,
            queries,
            query_positions,
            scaling,
            self.layer_idx,
            rotary,
        )
        kept = select(self.pruning.method.score(stored), self.starts, counts)
        index = kept.index[..., None].expand(-1, -1, -1, self.keys.shape[-1])
        self.keys, self.values = self.keys.gather(2, index), self.values.gather(2, index)
        self.starts = kept.starts
        if self.pruning.prune_every is not None:
            heads = kept.index.shape[1]
            self._kept = positions.expand(-1, heads, -1).gather(2, kept.index), self._lengths

    def _store(self) -> None:
        room = self.reserve_tokens
        if self.pruning is not None and self.pruning.prune_every is not None:
            room = min(room, self.pruning.prune_every)
        if self.kv_bits is None:
            self.storage = Storage(self.keys, self.values, room)
            self.keys, self.values = self.storage.read()
        else:
            self.storage = QuantizedStorage(self.keys, self.values, room, self.starts, self.kv_bits)
            self.keys, self.values = self.keys[:, :, :0].clone(), self.values[:, :, :0].clone()

    def _positions(self) -> torch.Tensor:
        """(B, H or 1, S) int64: the place in its row of each stored token, negative for padding."""
        stored = self.keys.shape[2]
        index = torch.arange(stored, device=self.keys.device)
        lengths = torch.tensor(self._lengths, device=self.keys.device)
        # Counted from the end, where the row's newest token stands.
        positions = (lengths[:, None] - stored + index)[:, None]
        if self._kept is not None:
            kept, kept_lengths = self._kept
            positions = positions.repeat(1, kept.shape[1], 1)
            for row, start in enumerate(self._starts()):
                end = stored - (self._lengths[row] - kept_lengths[row])
                positions[row, :, start:end] = kept[row, :, kept.shape[2] - (end - start) :]
        first = torch.tensor(self._starts(), device=self.keys.device)
        return positions.masked_fill((index < first[:, None])[:, None], -1)

    def _remember(self, queries: torch.Tensor | None) -> None:
        """Keep the last queries where decoded tokens are pruned by a method that needs them."""
        if self.pruning is None or self.pruning.prune_every is None or queries is None:
            return
        window = self.pruning.method.query_window
        if window == 0:
            return
        new_queries = queries.shape[2]
        lengths = torch.tensor(self._lengths, device=queries.device)[:, None]
        padding = torch.tensor(self._new_padding, device=queries.device)[:, None]
        place = torch.arange(new_queries, device=queries.device)
        positions = (lengths - new_queries + place).masked_fill(place < padding, -1)
        if self._queries is not None and self._query_positions is not None:
            queries = torch.cat([self._queries, queries], dim=2)
            positions = torch.cat([self._query_positions, positions], dim=1)
        self._queries = queries[:, :, -window:].clone()
        self._query_positions = positions[:, -window:]

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
        assert self.storage is not None
        rows = indices.tolist()
        self.storage.select_rows(indices)
        self.keys, self.values = self.storage.read()
        if self.starts is not None:
            self.starts = leading([self.starts[row] for row in rows])
        self._lengths = [self._lengths[row] for row in rows]
        self._prompt_lengths = [self._prompt_lengths[row] for row in rows]
        self._pruned_at = [self._pruned_at[row] for row in rows]
        if self._kept is not None:
            kept, kept_lengths = self._kept
            self._kept = kept[indices], [kept_lengths[row] for row in rows]
        if self._queries is not None and self._query_positions is not None:
            self._queries = self._queries[indices]
            self._query_positions = self._query_positions[indices]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Reorder the rows for beam search."""
        self.batch_select_indices(beam_idx.to(self.keys.device))
