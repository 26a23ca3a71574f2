"""One cache layer that prunes itself: in the prefill, and while it decodes if asked to."""

from contextlib import nullcontext

import torch
from transformers.cache_utils import DynamicLayer

from kv_compression.measure import Stopwatch
from kv_compression.methods import StoredLayer, prompt_queries
from kv_compression.pruning import Pruning
from kv_compression.queries import LastQueries
from kv_compression.rotary import Rotary
from kv_compression.selection import leading, select, to_device
from kv_compression.storage import KeyValue, QuantizedStorage, Storage


class PrunedLayer(DynamicLayer):
    """One layer's keys and values, (B, H, S, D) each, pruned once the prompt is written.

    The first `update` is the whole prompt, unless `prompt_tokens` is set before it, the length of a
    padded prompt that comes in several.

    pruning: None stores everything.
    starts: for each row of the batch the number of padding tokens before its first token, or None.
    reserve_tokens: tokens that will be appended later; room for them is allocated once, so that no
        step copies the cache.
    chunk_padding: set it before an `update` whose tokens are padded on the left: for each row the
        number of padding tokens before its new tokens.
    last_query_alone: only the last query's output of attention is read.
    read_starts, reader: the `starts` of what the last `update` returned, and the `id` of the module
        that has attended to it, or None.
    stopwatch: where the time spent on pruning and quantizing is added up.
    kv_bits: 8 or 4 quantizes what is left of the prompt; None for floats.
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
        self.last_query_alone = False
        self.read_starts = starts
        self.reader: int | None = None
        self.prompt_tokens: int | None = None
        self.storage: Storage | None = None
        self._prompt: Storage | None = None  # where a prompt in chunks is being written
        self._coming = 0  # tokens of the prompt that are not written yet
        self._settled = False  # since the last update
        self._lengths: list[int] = []  # of each row, in tokens seen
        self._prompt_lengths: list[int] = []
        self._pruned_at: list[int] = []  # each row's tokens seen when it was last pruned
        self._new_padding: tuple[int, ...] = ()  # before the tokens of the last later update
        self._kept: tuple[torch.Tensor, list[int]] | None = None
        self._queries = LastQueries()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> KeyValue:
        """Append tokens, (B, H, Q, D) each; returns all keys and values that are now stored."""
        batch, _, new_tokens, _ = key_states.shape
        if not self.is_initialized:
            self._begin(key_states, value_states)
        if self._coming:
            before = self.seen_tokens
            padding = tuple(min(max(start - before, 0), new_tokens) for start in self._starts())
            if self._prompt is None:
                # Not copied yet: `settle` stores what stays, once attention has seen everything.
                self.keys, self.values = key_states, value_states
            else:
                self._prompt.append(key_states, value_states, padding=None)
                self.keys, self.values = self._prompt.read()
            self._coming -= new_tokens
        else:
            if self.storage is None:
                self.settle()
            assert self.storage is not None
            self.storage.append(key_states, value_states, self.chunk_padding)
            self.keys, self.values = self.storage.read()
            padding = self._new_padding = self.chunk_padding or (0,) * batch
            self.starts = leading([a + b for a, b in zip(self._starts(), padding, strict=True)])
            self.chunk_padding = None
        lengths = zip(self._lengths, padding, strict=True)
        self._lengths = [length + new_tokens - before_it for length, before_it in lengths]
        self.seen_tokens += new_tokens
        self.read_starts, self.reader, self._settled = self.starts, None, False
        return self.keys, self.values

    def _begin(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Make ready for a prompt whose first tokens these are."""
        batch, _, new_tokens, _ = keys.shape
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._lengths = [0] * batch
        self._new_padding = (0,) * batch  # a prompt's padding has negative positions
        self._coming = new_tokens if self.prompt_tokens is None else self.prompt_tokens
        self._prompt_lengths = [self._coming - start for start in self._starts()]
        self._pruned_at = list(self._prompt_lengths)
        if self.prompt_tokens is not None:
            # Where nothing will go, it is written where it stays.
            stays = self.kv_bits is None and self._prompt_counts() == self._prompt_lengths
            self._prompt = Storage(keys, values, self._coming + self._room * stays)

    @property
    def stored_tokens(self) -> int:
        """Tokens stored, padding included."""
        return self.keys.shape[2] if self.storage is None else self.storage.stored_tokens

    @property
    def needs_rotation(self) -> bool:
        """Whether `settle` must be told the rotation of the model's layer."""
        return self.pruning is not None and getattr(self.pruning.method, "needs_rotation", False)

    def settle(
        self,
        queries: torch.Tensor | None = None,
        scaling: float = 1.0,
        rotary: Rotary | None = None,
    ) -> None:
        """Prune what is due; call it when attention has read what the last `update` returned.

        A layer that attends to it again may do so: it is not changed, and nothing is due then.

        queries (B, Hq, Q, D) of the last update's tokens, scaling and rotary are attention's own,
        for methods that score by them.
        """
        if self._settled:
            return
        self._settled = True
        is_prefill = self.storage is None
        if queries is not None and self.pruning is not None:
            self._note(queries, self.pruning, is_prefill)
        if self._coming:
            return
        lengths = [self.stored_tokens - start for start in self._starts()]
        counts = self._prompt_counts() if is_prefill else self._counts(lengths)
        due = counts != lengths
        if due or (is_prefill and self.kv_bits):
            timing = self.stopwatch.running(self.keys.device) if self.stopwatch else nullcontext()
            with timing:
                self._store(self._chosen(counts, scaling, rotary) if due else None)
        elif is_prefill:
            self._store(None)
        if is_prefill:
            again = self.pruning if self.pruning and self.pruning.prune_every else None
            self._queries.keep(again.method.query_window if again else 0)
        elif self.kv_bits:
            # The floats were made for this step's attention.
            self.keys, self.values = self.keys[:, :, :0].clone(), self.values[:, :, :0].clone()

    def _starts(self) -> tuple[int, ...]:
        return self.starts or (0,) * len(self._lengths)

    def _prompt_counts(self) -> list[int]:
        """How many of each row's tokens stay of the prompt."""
        if self.pruning is None:
            return self._prompt_lengths
        budget = self.pruning.budget
        return [min(length, budget(length, length)) for length in self._prompt_lengths]

    def _counts(self, lengths: list[int]) -> list[int]:
        """How many of each row's `lengths` stored tokens stay after a later update."""
        if self.pruning is None or self.pruning.prune_every is None:
            return lengths
        counts = []
        for row, stored in enumerate(lengths):
            seen, prompt = self._lengths[row], self._prompt_lengths[row]
            due = seen - self._pruned_at[row] >= self.pruning.prune_every
            counts.append(min(stored, self.pruning.budget(prompt, seen)) if due else stored)
            if counts[row] < stored:
                self._pruned_at[row] = seen
        return counts

    def _note(self, queries: torch.Tensor, pruning: Pruning, is_prefill: bool) -> None:
        """Keep the queries that the method will score by."""
        if is_prefill:
            window = prompt_queries(pruning.method, self.seen_tokens + self._coming)
            if window:
                self._queries.note_prompt(queries, window, self._coming, self._lengths)
        elif pruning.prune_every is not None and (window := pruning.method.query_window):
            self._queries.add(queries, window, self._new_padding, self._lengths)

    def _chosen(self, counts: list[int], scaling: float, rotary: Rotary | None) -> torch.Tensor:
        """Which counts[b] tokens of each row stay, int64 (B, H, S_kept); `starts` is theirs."""
        assert self.pruning is not None
        positions = self._positions()
        stored = StoredLayer(
            self.keys,
            self.values,
            positions,
            self._queries.states,
            self._queries.positions,
            scaling,
            self.layer_idx,
            rotary,
        )
        kept = select(self.pruning.method.score(stored), self.starts, counts)
        self.starts = kept.starts
        if self.pruning.prune_every is not None:
            heads = kept.index.shape[1]
            self._kept = positions.expand(-1, heads, -1).gather(2, kept.index), self._lengths
        return kept.index

    @property
    def _room(self) -> int:
        """Tokens that room is kept for."""
        if self.pruning is not None and self.pruning.prune_every is not None:
            return min(self.reserve_tokens, self.pruning.prune_every)
        return self.reserve_tokens

    def _store(self, index: torch.Tensor | None) -> None:
        """Keep the tokens at `index`, or all, in a storage of the layer's own."""
        keys, values = self.keys, self.values
        if self.kv_bits is not None:
            self.storage = QuantizedStorage(
                keys, values, index, self._room, self.starts, self.kv_bits
            )
            self.keys, self.values = keys[:, :, :0].clone(), values[:, :, :0].clone()
        else:
            if self._prompt is None or index is not None:
                self.storage = Storage.of(keys, values, index, self._room)
            else:
                self.storage = self._prompt
            self.keys, self.values = self.storage.read()
        self._prompt = None

    def _positions(self) -> torch.Tensor:
        """(B, H or 1, S) int64: the place in its row of each stored token, negative for padding."""
        stored = self.keys.shape[2]
        index = torch.arange(stored, device=self.keys.device)
        lengths = to_device(self._lengths, self.keys.device)
        # Counted from the end, where the row's newest token stands.
        positions = (lengths[:, None] - stored + index)[:, None]
        if self._kept is not None:
            kept, kept_lengths = self._kept
            positions = positions.repeat(1, kept.shape[1], 1)
            for row, start in enumerate(self._starts()):
                end = stored - (self._lengths[row] - kept_lengths[row])
                positions[row, :, start:end] = kept[row, :, kept.shape[2] - (end - start) :]
        first = to_device(self._starts(), self.keys.device)
        return positions.masked_fill((index < first[:, None])[:, None], -1)

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
        self._queries.select_rows(indices)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Reorder the rows for beam search."""
        self.batch_select_indices(beam_idx.to(self.keys.device))
