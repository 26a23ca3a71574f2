"""One cache layer that prunes itself, or keeps a window: in the prefill, and while it decodes."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from kv_compression.attended import NOTHING, Attended
from kv_compression.incoming import NOTHING_SPECIAL, Incoming
from kv_compression.layer_kinds import FULL, LayerKind
from kv_compression.measure import Stopwatch
from kv_compression.methods import PruningMethod, StoredLayer, prompt_queries
from kv_compression.model_pool import ModelPool
from kv_compression.prune_again import PruneAgain
from kv_compression.pruning import Pruning
from kv_compression.queries import LastQueries
from kv_compression.ragged import QuantizedRaggedStorage, RaggedStorage
from kv_compression.selection import (
    PooledSelection,
    Selection,
    padding_or_none,
    select,
    select_pooled,
    to_device,
)
from kv_compression.storage import KeyValue, QuantizedStorage, Storage


class PrunedLayer(DynamicLayer):
    """One layer's keys and values, (B, H, S, D) each, pruned once the prompt is written.

    The first `update` is the whole prompt, unless `Incoming.prompt_tokens` says that it comes in
    several.

    pruning: None stores everything.
    left_padding: for each row the number of stored padding tokens, which stand before its first
        token, or None where no row has any.
    reserve_tokens: tokens that will be appended later; room for them is allocated once, so that no
        step copies the cache.
    stopwatch: where the time spent on pruning and quantizing is added up.
    kv_bits: 8 or 4 quantizes what is left of the prompt; None for floats.
    kind: of a layer with a window or with chunks the tokens stay that the next ones can see; it
        takes no `pruning` and no `kv_bits`.
    place: which of how many pruned layers this is, from 0.
    pool: where layers compete with each other for tokens, what they have in common.

    Where heads keep different numbers of tokens, `ragged` holds them, and `keys` and `values` are
    those of the last update alone.

    After an `update`, read_left_padding is the `left_padding` of what it returned, and reader the
    `id` of the attention module that has read that, or None. With same_length=False other layers
    of the cache store another number of tokens.
    """

    def __init__(
        self,
        pruning: Pruning | None = None,
        left_padding: tuple[int, ...] | None = None,
        reserve_tokens: int = 0,
        stopwatch: Stopwatch | None = None,
        layer_idx: int = 0,
        kv_bits: int | None = None,
        kind: LayerKind = FULL,
        place: tuple[int, int] = (0, 1),
        pool: ModelPool | None = None,
    ):
        DynamicLayer.__init__(self)
        assert kind.is_full or (pruning is None and kv_bits is None)
        self.layer_idx = layer_idx
        self.kind = kind
        self.keys: torch.Tensor
        self.values: torch.Tensor
        self.pruning = pruning
        self.left_padding = left_padding
        self.reserve_tokens = reserve_tokens
        self.stopwatch = stopwatch
        self.kv_bits = kv_bits
        self.place = place
        self.pool = pool
        self.seen_tokens = 0
        self.same_length = True
        self.read_left_padding = left_padding
        self.reader: int | None = None
        self.storage: Storage | None = None
        self.ragged: RaggedStorage | QuantizedRaggedStorage | None = None
        self._prompt: Storage | None = None  # where a prompt in chunks is being written
        self._prompt_lengths: list[int] = []  # of each row
        self._prompt_tokens_left = 0  # not written yet
        self._lengths: list[int] = []  # of each row, in tokens seen
        self._new_padding: tuple[int, ...] = ()  # before the tokens of the last update after it
        self._is_checked = False  # whether pruning was due, since the last update
        self._queries = LastQueries()
        self._again: PruneAgain | None = None

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: object,
        incoming: Incoming = NOTHING_SPECIAL,
        **kwargs: object,
    ) -> KeyValue:
        """Append tokens, (B, H, Q, D) each; returns all keys and values that are now stored.

        What else a model hands to its cache (`args`, `kwargs`) says nothing here.
        """
        new_tokens = key_states.shape[2]
        if not self.is_initialized:
            self._begin(key_states, value_states, incoming.prompt_tokens)
        if self._prompt_tokens_left:
            padding = self._write_prompt(key_states, value_states)
        else:
            padding = self._append(key_states, value_states, incoming.left_padding)
        self._lengths = [
            length + new_tokens - none_of_it
            for length, none_of_it in zip(self._lengths, padding, strict=True)
        ]
        self.seen_tokens += new_tokens
        self.read_left_padding, self.reader, self._is_checked = self.left_padding, None, False
        if self._span is not None:
            stored = self.keys.shape[2]
            self._keep_last(self._span + new_tokens)
            self.read_left_padding = self._dropped(stored - self.keys.shape[2])
        return self.keys, self.values

    @property
    def _span(self) -> int | None:
        """Tokens before a query that it sees at most; None for all."""
        limit = self.kind.window or self.kind.chunk
        return None if limit is None else limit - 1

    def _keep_last(self, count: int) -> None:
        """Let go all but the last `count` tokens of what attention reads."""
        first = max(0, self.keys.shape[2] - count)
        self.keys, self.values = self.keys[:, :, first:], self.values[:, :, first:]

    def _dropped(self, count: int) -> tuple[int, ...] | None:
        """`left_padding` where the first `count` stored tokens are not there."""
        return padding_or_none([max(0, padding - count) for padding in self._padding()])

    def positions_of(self, row: int, read_tokens: int) -> range:
        """Positions in row `row` of the `read_tokens` that attention reads, its padding below 0."""
        return range(self._lengths[row] - read_tokens, self._lengths[row])

    def _begin(self, keys: torch.Tensor, values: torch.Tensor, prompt_tokens: int | None) -> None:
        """Make ready for a prompt whose first tokens these are."""
        batch, _, new_tokens, _ = keys.shape
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._lengths = [0] * batch
        self._new_padding = (0,) * batch
        self._prompt_tokens_left = new_tokens if prompt_tokens is None else prompt_tokens
        self._prompt_lengths = [self._prompt_tokens_left - padding for padding in self._padding()]
        if self.pruning is not None and self.pruning.prune_every is not None:
            most_tokens = partial(
                self.pruning.most_tokens, place=self.place[0], layers=self.place[1]
            )
            self._again = PruneAgain(self.pruning.prune_every, most_tokens, self._prompt_lengths)
        if prompt_tokens is not None:
            # A prompt that nothing will be removed from is written where it stays.
            stays = self.kv_bits is None and self._prompt_counts() == self._prompt_lengths
            stays &= self._span is None
            self._prompt = Storage(keys, values, prompt_tokens + self._room * stays)

    def _write_prompt(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[int, ...]:
        """Take tokens of the prompt; returns how many of them are padding in each row."""
        before, new_tokens = self.seen_tokens, keys.shape[2]
        if self._prompt is None:
            # Not copied: `prune_if_due` stores what stays, once attention has read everything.
            self.keys, self.values = keys, values
        else:
            self._prompt.append(keys, values, padding=None)
            self.keys, self.values = self._prompt.read()
        self._prompt_tokens_left -= new_tokens
        return tuple(min(max(padding - before, 0), new_tokens) for padding in self._padding())

    def _append(
        self, keys: torch.Tensor, values: torch.Tensor, left_padding: tuple[int, ...] | None
    ) -> tuple[int, ...]:
        """Take tokens that follow the prompt; returns how many of them are padding in each row."""
        if not self.is_stored:
            self.prune_if_due()
        self._new_padding = left_padding or (0,) * len(self._lengths)
        if self.ragged is not None:
            first = [
                length - none for length, none in zip(self._lengths, self._new_padding, strict=True)
            ]
            place = torch.arange(keys.shape[2], device=keys.device)
            positions = to_device(first, keys.device)[:, None] + place
            self.ragged.append(keys, values, left_padding, positions)
            self.keys, self.values = keys, values
            return self._new_padding
        assert self.storage is not None
        self.storage.append(keys, values, left_padding)
        self.keys, self.values = self.storage.read()
        both = zip(self._padding(), self._new_padding, strict=True)
        self.left_padding = padding_or_none([stored + new for stored, new in both])
        return self._new_padding

    @property
    def is_stored(self) -> bool:
        """Whether the prompt was read and what stays of it stored."""
        return self.storage is not None or self.ragged is not None

    @property
    def stored_tokens(self) -> int:
        """Tokens stored of the longest row, padding included; of heads that differ, on average."""
        if self.ragged is not None:
            return round(max(self.ragged.row_counts) / self.keys.shape[1])
        return self.keys.shape[2] if self.storage is None else self.storage.stored_tokens

    @property
    def stored_bytes(self) -> int:
        """Bytes stored, once the prompt was read."""
        held = self.ragged or self.storage
        return held.nbytes if held is not None else 0

    def unpruned_bytes(self) -> int:
        """Bytes of the prompt's keys and values in the model's dtype, had nothing been removed."""
        batch, heads, _, key_dim = self.keys.shape
        numbers = batch * heads * (key_dim + self.values.shape[3]) * self.seen_tokens
        return numbers * self.keys.element_size()

    def needs(self, what: str) -> bool:
        """Whether `prune_if_due` must be told the "rotation" or "output_weight" of the layer."""
        return self.pruning is not None and getattr(self.pruning.method, f"needs_{what}", False)

    def prune_if_due(self, attended: Attended = NOTHING) -> None:
        """Prune what is due; call it when attention has read what the last `update` returned.

        A second call before the next `update` does nothing: a module may attend twice.
        """
        if self._is_checked:
            return
        self._is_checked = True
        is_prefill = not self.is_stored
        if attended.queries is not None and self.pruning is not None:
            self._note(attended.queries, self.pruning, is_prefill)
        if self._prompt_tokens_left:
            return
        if self._span is not None:
            if is_prefill:
                self.left_padding = self._dropped(max(0, self.seen_tokens - self._span))
                self._keep_last(self._span)
                self._store(None)
            return
        stored = self._row_counts()
        counts = self._prompt_counts() if is_prefill else stored
        if self._again and not is_prefill:
            counts = self._again.counts(stored, self._lengths)
        timing = self.stopwatch.running(self.keys.device) if self.stopwatch else nullcontext()
        if counts != stored:
            with timing:
                self._prune(counts, attended)
        elif is_prefill:
            with timing if self.kv_bits else nullcontext():
                self._store(None)
        if is_prefill:
            again = self.pruning if self._again else None
            self._queries.keep(again.method.query_window if again else 0)
        elif self.kv_bits and self.ragged is None:
            self._drop_floats()

    def _row_counts(self) -> list[int]:
        """Tokens stored of each row; of heads that differ, on average."""
        if self.ragged is not None:
            return [count // self.keys.shape[1] for count in self.ragged.row_counts]
        return [self.stored_tokens - padding for padding in self._padding()]

    def _padding(self) -> tuple[int, ...]:
        return self.left_padding or (0,) * len(self._lengths)

    def _prompt_counts(self) -> list[int]:
        """How many of each row's tokens stay of the prompt."""
        if self.pruning is None:
            return self._prompt_lengths
        most = partial(self.pruning.most_tokens, place=self.place[0], layers=self.place[1])
        return [min(length, most(length, length)) for length in self._prompt_lengths]

    def _note(self, queries: torch.Tensor, pruning: Pruning, is_prefill: bool) -> None:
        """Keep the queries that the method will score by."""
        if is_prefill:
            left = self._prompt_tokens_left
            window = prompt_queries(pruning.method, self.seen_tokens + left)
            if window:
                self._queries.note_prompt(queries, window, left, self._lengths)
        elif self._again and (window := pruning.method.query_window):
            self._queries.add(queries, window, self._new_padding, self._lengths)

    def _prune(self, counts: list[int], attended: Attended) -> None:
        """Store counts[b] tokens of each row, on average over heads."""
        assert self.pruning is not None
        padding: torch.Tensor | None = None
        if isinstance(self.ragged, RaggedStorage):
            self.keys, self.values, positions = self.ragged.padded()
            padding = (positions < 0).sum(dim=2)
        else:
            positions = self._positions()
        stored = StoredLayer(
            *(attended.key_value or (self.keys, self.values)),
            positions,
            self._queries.states,
            self._queries.positions,
            attended.scaling,
            self.layer_idx,
            attended.rotary,
            attended.output_weight,
            tuple(counts),
            self.pruning.budget,
        )
        scores, budget = self._scores(self.pruning.method, stored), self.pruning.budget
        if budget.pool == "head":
            kept = select(scores, self.left_padding, counts)
            if self._again:
                self._again.note(positions, kept.index, self._lengths)
            self._store(kept)
            return
        if self.left_padding is not None:
            padding = to_device(self.left_padding, scores.device)[:, None]
        if self.pool is not None:
            self.pool.note(self, scores, padding, counts, budget)
            return
        totals = [count * scores.shape[1] for count in counts]
        guaranteed = [budget.guaranteed(count) for count in counts]
        self._store(select_pooled(scores, padding, totals, guaranteed), positions)

    def _scores(self, method: PruningMethod, stored: StoredLayer) -> torch.Tensor:
        """(B, H, S), higher for what stays."""
        return method.score(stored).unflatten(1, (self.keys.shape[1], -1)).mean(dim=2)

    @property
    def _room(self) -> int:
        """Tokens that room is kept for."""
        if self.pruning is not None and self.pruning.prune_every is not None:
            return min(self.reserve_tokens, self.pruning.prune_every)
        return self.reserve_tokens

    def _store(
        self,
        kept: Selection | PooledSelection | None,
        positions: torch.Tensor | None = None,
    ) -> None:
        """Keep what was chosen, or all, in a storage of the layer's own.

        positions: of the tokens, for heads that differ and are pruned again.
        """
        keys, values = self.keys, self.values
        if isinstance(kept, PooledSelection):
            self.left_padding = None
            if self.kv_bits is None:
                positions = positions if self._again else None
                self.ragged = RaggedStorage(keys, values, kept, self._room, positions)
            else:
                self.ragged = QuantizedRaggedStorage(keys, values, kept, self._room, self.kv_bits)
            self._drop_floats()
            self._prompt = None
            return
        index = None
        if kept is not None:
            index, self.left_padding = kept.index, kept.left_padding
        if self.kv_bits is not None:
            self.storage = QuantizedStorage(
                keys, values, index, self._room, self.left_padding, self.kv_bits
            )
            self._drop_floats()
        else:
            if self._prompt is None or index is not None or self._span is not None:
                self.storage = Storage.of(keys, values, index, self._room)
            else:
                self.storage = self._prompt
            self.keys, self.values = self.storage.read()
        self._prompt = None

    def _drop_floats(self) -> None:
        """Free floats that were made for one step's attention, or are stored elsewhere."""
        self.keys, self.values = self.keys[:, :, :0].clone(), self.values[:, :, :0].clone()

    def _positions(self) -> torch.Tensor:
        """(B, H or 1, S) int64: each stored token's place in its row, negative for padding."""
        stored = self.keys.shape[2]
        index = torch.arange(stored, device=self.keys.device)
        lengths = to_device(self._lengths, self.keys.device)
        # Counted from the end, where the row's newest token stands.
        positions = (lengths[:, None] - stored + index)[:, None]
        if self._again:
            positions = self._again.corrected(positions, self._padding(), self._lengths)
        first = to_device(self._padding(), self.keys.device)
        return positions.masked_fill((index < first[:, None])[:, None], -1)

    def get_seq_length(self) -> int:
        """Tokens seen, padding included: the length that positions and masks count."""
        return self.seen_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys of transformers' own mask, and the position of the first one.

        Raises NotImplementedError for several new tokens where layers differ in what they store:
        transformers makes one mask for all.
        """
        if not self.is_initialized:
            return query_length, 0
        if query_length == 1:
            # It sees every key, so one column does for layers of any length.
            return 1, self.seen_tokens
        if not self.same_length:
            raise NotImplementedError(
                "the cache's layers store different numbers of tokens, so model.generate can go on "
                "by one new token at a time only; skip no layer, or use kv_compression.generate"
            )
        return self.stored_tokens + query_length, self.seen_tokens - self.stored_tokens

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
        if self.storage is None:
            raise NotImplementedError("the rows of a cache whose heads differ cannot be selected")
        rows = indices.tolist()
        self.storage.select_rows(indices)
        self.keys, self.values = self.storage.read()
        if self.left_padding is not None:
            self.left_padding = padding_or_none([self.left_padding[row] for row in rows])
        self._lengths = [self._lengths[row] for row in rows]
        self._prompt_lengths = [self._prompt_lengths[row] for row in rows]
        if self._again is not None:
            self._again.select_rows(indices)
        self._queries.select_rows(indices)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Reorder the rows for beam search."""
        self.batch_select_indices(beam_idx.to(self.keys.device))


class PrunedLayerWithState(LinearAttentionLayer, PrunedLayer):  # type: ignore[misc,override]
    """A layer with attention and a state side by side; the state is as transformers keeps it."""

    is_compileable = False

    def __init__(self, pruning: Pruning | None, *, kind: LayerKind, **options: Any):
        LinearAttentionLayer.__init__(self, number_of_states=kind.states)
        PrunedLayer.__init__(self, pruning, kind=kind, **options)
