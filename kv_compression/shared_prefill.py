"""Several caches, and several questions, from one prefill.

Attention in a prefill does not depend on what is pruned afterwards. So a prompt is read once into a
cache that keeps everything; as each layer is done, every method chooses what it would keep, and
only the choice is noted. Then one cache after the other is gathered from the full one and decoded,
so that two exist at a time. Nor does a context depend on the question behind it: each question is
read against a copy of what is kept of the context.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from kv_compression import budgets, methods, rope_length
from kv_compression.attended import NOTHING, Attended
from kv_compression.attention import Backend
from kv_compression.attention_hook import use_attention
from kv_compression.cache import PrunedCache
from kv_compression.decode_graph import DecodeGraphs
from kv_compression.forward import Forward, Prefilled, read_prompt
from kv_compression.generation import Generation, answered, check_request
from kv_compression.layer import PrunedLayer
from kv_compression.layer_kinds import LayerKind, layer_kinds
from kv_compression.measure import PeakMemory, Stopwatch, synchronize
from kv_compression.methods import PruningMethod, StoredLayer
from kv_compression.prefill.prompt_chunks import prompt_chunks, prompt_lengths
from kv_compression.pruning import Pruning
from kv_compression.selection import PooledSelection, Selection, padding_or_none


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts, as `generate` takes it.

    Those that are read together differ in their questions, and in how long an answer may be.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None = None
    question_tokens: Sequence[int] | None = None
    max_new_tokens: int = 1


def reason_unsupported(
    model: PreTrainedModel, prunings: Sequence[Pruning | None], n_prompts: int = 1
) -> str | None:
    """Why one prefill cannot serve these, in a few words; None where it can."""
    if n_prompts > 1 and (kind := rope_length.kind(model.config)):
        return f"its {kind} rotation of a context depends on how long the question is"
    if len(prunings) == 1:
        return None
    if any(pruning is not None and pruning.prune_every is not None for pruning in prunings):
        return "caches that are pruned again differ in more than what they keep of the prompt"
    if any(kind.states for kind in layer_kinds(model.config)):
        return "states of linear layers are changed in place"
    return None


class _ChoosingLayer(PrunedLayer):
    """A layer that notes what it would keep of another one, and stores it later."""

    _kept: Selection | PooledSelection | None = None
    _known: dict[str, torch.Tensor] | None = None  # scores of this layer, by method

    def look_at(
        self,
        full: PrunedLayer,
        attended: Attended,
        known: dict[str, torch.Tensor],
    ) -> None:
        """Choose among the tokens of `full`, once its prompt is complete.

        known: scores that others chose by, which methods with the same settings share.
        """
        self._take_over(full)
        self._known = known
        self._is_checked = False
        self.prune_if_due(attended)
        self._known = None
        # What attention read is not what `full` will store.
        self.keys = self.values = full.keys.new_empty(0)

    def gather(self, full: PrunedLayer, *, takes_over: bool) -> None:
        """Store what was chosen; `takes_over`: `full` is not needed any more."""
        assert full.storage is not None
        self._take_over(full)
        self._prompt = None
        is_whole = self._kept is None and self.kv_bits is None
        if takes_over and is_whole:
            self.storage = full.storage
        else:
            self.keys, self.values = full.storage.read()
            kept = self._kept and replace(self._kept, index=self._kept.index.long())
            timing = self.stopwatch
            assert timing is not None
            with timing.running(self.keys.device):
                super()._store(kept)
        self._kept = None
        self._is_checked = True

    def _take_over(self, full: PrunedLayer) -> None:
        self.keys, self.values, self.left_padding = full.keys, full.values, full.left_padding
        self.dtype, self.device, self.is_initialized = full.dtype, full.device, True
        self.seen_tokens, self.read_left_padding = full.seen_tokens, full.read_left_padding
        self._lengths, self._prompt_lengths = list(full._lengths), list(full._prompt_lengths)
        self._prompt_tokens_left, self._new_padding = full._prompt_tokens_left, full._new_padding

    def _scores(self, method: PruningMethod, stored: StoredLayer) -> torch.Tensor:
        assert self._known is not None
        name = f"{type(method)} {vars(method)}"
        if getattr(method, "scores_by_counts", False):
            name += f" {stored.counts} {stored.budget}"
        if name not in self._known:
            self._known[name] = super()._scores(method, stored)
        return self._known[name]

    def _store(
        self,
        kept: Selection | PooledSelection | None,
        positions: torch.Tensor | None = None,
    ) -> None:
        self._kept = kept and replace(kept, index=kept.index.int())


class _FullLayer(PrunedLayer):
    """A layer that keeps everything and shows it to others."""

    choosing: Sequence[_ChoosingLayer] = ()

    def needs(self, what: str) -> bool:
        """Whether one of the others must be told."""
        return any(layer.needs(what) for layer in self.choosing)

    def prune_if_due(self, attended: Attended = NOTHING) -> None:
        """Let the others choose, while a prompt is read."""
        if self.storage is None and not self._is_checked and self.kind.is_full:
            known: dict[str, torch.Tensor] = {}
            for layer in self.choosing:
                layer.look_at(self, attended, known)
        super().prune_if_due(attended)


class _FullCache(PrunedCache):
    layer_class = _FullLayer


class _ChoosingCache(PrunedCache):
    layer_class = _ChoosingLayer

    def gather(self, full: _FullCache, *, takes_over: bool) -> None:
        """Store what was chosen; `takes_over`: `full` is not needed any more."""
        mine: list[Any] = self.attention_layers
        of_full: list[Any] = full.attention_layers
        for own, of_all in zip(mine, of_full, strict=True):
            own.gather(of_all, takes_over=takes_over)


@torch.inference_mode()
def generate_each(
    model: PreTrainedModel,
    prompts: Sequence[Prompts],
    *,
    prunings: Sequence[Pruning | None],
    backend: str | Backend,
    stop_tokens: Collection[int] = (),
    kv_bits: int | None = None,
    choice_tokens: Sequence[int] = (),
    graphs: DecodeGraphs | None = None,
    prefill_chunk: int | None = None,
) -> Iterator[tuple[int, int, Generation | Exception]]:
    """What `generate` gives for each pruning and each of `prompts`, with what they share read once.

    prompts: one, or several with the same contexts and a question each.

    Yields the places of the pruning and of the prompts, and what became of them as soon as it is
    known: the same tokens and bytes, or the error of these alone. Of a Generation's times,
    decode_ms and the part of ttft_ms that reads the questions are its own; the rest, and
    peak_prefill_bytes, is of the prefill that all share. Methods with the same settings score once,
    whatever they keep. Other arguments are those of `generate`.

    Raises what `generate` raises while the context is read, and ValueError where contexts differ
    or `reason_unsupported` has something against it.
    """
    if problem := reason_unsupported(model, prunings, len(prompts)):
        raise ValueError(f"these caches cannot share a prefill: {problem}")
    for pruning in prunings:
        for each in prompts:
            kinds = check_request(
                model,
                each.input_ids.shape,
                each.max_new_tokens,
                backend,
                pruning,
                kv_bits,
                graphs,
                prefill_chunk,
            )
        if pruning and (
            problem := methods.reason_unsupported(pruning.method, model)
            or budgets.reason_unsupported(pruning.budget, model)
        ):
            raise ValueError(problem)
    chunks, stopwatches = _chunks_with_one_context(prompts, model), [Stopwatch() for _ in prunings]
    full, caches = _empty_caches(prompts, chunks, kinds, prunings, stopwatches, kv_bits)
    forward = Forward(model, full or caches[0], len(chunks[0][0][0]), prefill_chunk)
    context = _read_context(forward, chunks[0][0], backend)
    _show(full, ())
    # The cache that keeps everything comes last and takes the full one over.
    order = sorted(range(len(prunings)), key=lambda number: prunings[number] is None)
    for number in order:
        kept, caches[number] = caches[number], None  # one at a time
        for place, (each, (_, *questions)) in enumerate(zip(prompts, chunks, strict=True)):
            try:
                if full is not None and place == 0:
                    kept.gather(full, takes_over=number == order[-1])
                # What comes after the context is written into its cache.
                cache = kept if place == len(prompts) - 1 else kept.copy()
                cache.prompt_lengths = prompt_lengths(chunks[place])
                result = context.answered(
                    cache,
                    questions,
                    backend,
                    compress_ms=stopwatches[number].total_ms,
                    max_new_tokens=each.max_new_tokens,
                    stop_tokens=stop_tokens,
                    graphs=graphs,
                    choice_tokens=choice_tokens,
                )
                found: Generation | Exception = replace(
                    result, prefill_is_shared=True, document_is_own=full is None and place == 0
                )
            except Exception as error:  # what one cannot do the others may
                found = error.with_traceback(None)
            yield number, place, found


@dataclass(frozen=True)
class _Context:
    """A context that was read, by a forward over the cache that it was read into."""

    forward: Forward
    read: Prefilled
    kernels: dict[str, set[str]]
    memory: PeakMemory
    peak_prefill_bytes: int | None

    def answered(
        self,
        cache: PrunedCache,
        questions: Sequence[tuple[torch.Tensor, list[int]]],
        backend: str | Backend,
        **options: Any,
    ) -> Generation:
        """What becomes of a question against `cache`, or of a prompt without one."""
        seen_tokens = self.forward.seen_tokens
        forward = Forward(self.forward.model, cache, len(seen_tokens), self.forward.prefill_chunk)
        forward.seen_tokens = seen_tokens.clone()
        with use_attention(forward.model, backend, cache) as kernels:
            kernels["prefill"] |= self.kernels["prefill"]
            first = self.read
            if questions:
                asked = read_prompt(forward, questions)
                first = replace(asked, ttft_ms=self.read.ttft_ms + asked.ttft_ms)
            return answered(
                forward,
                first,
                kernels,
                document_ms=self.read.ttft_ms if questions else None,
                memory=self.memory,
                peak_prefill_bytes=self.peak_prefill_bytes,
                **options,
            )


def _read_context(
    forward: Forward, context: tuple[torch.Tensor, list[int]], backend: str | Backend
) -> _Context:
    devices = {parameter.device for parameter in forward.model.parameters()}
    memory = PeakMemory(devices)
    memory.restart()
    with use_attention(forward.model, backend, forward.cache) as kernels:
        synchronize(devices)
        read = read_prompt(forward, [context])
        synchronize(devices)
    return _Context(forward, read, kernels, memory, memory.allocated())


def _empty_caches(
    prompts: Sequence[Prompts],
    chunks: Sequence[Sequence[tuple[torch.Tensor, list[int]]]],
    kinds: Sequence[LayerKind],
    prunings: Sequence[Pruning | None],
    stopwatches: Sequence[Stopwatch],
    kv_bits: int | None,
) -> tuple[_FullCache | None, list[Any]]:
    """A cache for each pruning, and the one that they choose from; a single one needs none."""
    after_context = (
        sum(tokens.shape[1] for tokens, _ in mine[1:]) + each.max_new_tokens - 1
        for mine, each in zip(chunks, prompts, strict=True)
    )
    options: dict[str, Any] = {
        "left_padding": padding_or_none(chunks[0][0][1]),
        "reserve_tokens": max(after_context),
        "prompt_lengths": prompt_lengths(chunks[0]),
    }
    full = _FullCache(kinds, None, **options) if len(prunings) > 1 else None
    cache_class = PrunedCache if full is None else _ChoosingCache
    caches: list[Any] = [
        cache_class(kinds, pruning, stopwatch=stopwatch, kv_bits=kv_bits, **options)
        for pruning, stopwatch in zip(prunings, stopwatches, strict=True)
    ]
    _show(full, caches)
    return full, caches


def _chunks_with_one_context(
    prompts: Sequence[Prompts], model: PreTrainedModel
) -> list[list[tuple[torch.Tensor, list[int]]]]:
    """What of each prompts is processed at once; raises ValueError where contexts differ."""
    device = next(model.get_input_embeddings().parameters()).device
    found = [
        prompt_chunks(each.input_ids.to(device), each.attention_mask, each.question_tokens)
        for each in prompts
    ]
    tokens, padding = found[0][0]
    for mine in found[1:]:
        if len(mine) < 2 or mine[0][1] != padding or not torch.equal(mine[0][0], tokens):
            raise ValueError("prompts that share a prefill differ in their questions alone")
    return found


def _show(full: _FullCache | None, caches: Sequence[PrunedCache]) -> None:
    """Let the layers of `caches` choose from those of `full`, if there is such a cache."""
    of_layers: list[Any] = full.attention_layers if full is not None else []
    for place, layer in enumerate(of_layers):
        layer.choosing = [cache.attention_layers[place] for cache in caches]
