"""Prefill, compress, decode: the one loop that every mode runs through, and its clock."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kv_compression import decode_graph, rope_length
from kv_compression.attention import Backend
from kv_compression.attention_hook import use_attention
from kv_compression.cache import CacheBytes, PrunedCache
from kv_compression.decode_graph import DecodeGraphs
from kv_compression.forward import Forward, Prefilled, read_prompt
from kv_compression.greedy import answers_of, eager_steps, log_probs
from kv_compression.layer_kinds import LayerKind, layer_kinds
from kv_compression.measure import PeakMemory, Stopwatch, synchronize
from kv_compression.prefill import layered
from kv_compression.prefill.prompt_chunks import prompt_chunks, prompt_lengths
from kv_compression.pruning import Pruning
from kv_compression.selection import padding_or_none


@dataclass(frozen=True)
class Generation:
    """New tokens of a batch and what they cost.

    new_tokens: for each row its new tokens, a stop token included.
    ttft_ms: from the call until the first new token is known on the host.
    document_ms: the part of ttft_ms that reads and compresses what comes before the questions, as
        a server that caches documents does once; None where questions are not read apart.
    prefill_ms: ttft_ms without compress_ms.
    compress_ms: choosing and moving what is kept, of all layers; it happens during prefill.
    decode_ms: from the first new token to the last; 0 when there is one.
    latency_ms: the whole request.
    cache_bytes: what the cache holds once the prompt is compressed.
    stored_tokens: the same in tokens, for each layer that stores tokens.
    pruned_layers: how many of them are pruned.
    peak_prefill_bytes, peak_decode_bytes, peak_reserved_bytes: GPU memory, the last one held by the
        allocator in both phases; None without a GPU.
    kernels: names of the attention kernels that ran, under "prefill" and "decode".
    decode_mode: "eager" or "graph"; "" where one token was asked for, which the prefill makes.
    capture_ms: capturing the decode step, where this request was the first to need it; it is in no
        other figure.
    prefill_mode: "whole", or "layered": one layer at a time over chunks of rows.
    choice_log_probs: for each row, log-probabilities of `choice_tokens` as its first new token.
    prefill_is_shared: one prefill served several caches or questions (see `shared_prefill`), so
        that what is measured of it, and of the request as a whole, is not this request's.
    document_is_own: whether document_ms and compress_ms are this cache's; of several questions
        about one document, that they are the first one's.
    """

    new_tokens: list[list[int]]
    ttft_ms: float
    document_ms: float | None
    prefill_ms: float
    compress_ms: float
    decode_ms: float
    latency_ms: float
    cache_bytes: CacheBytes
    stored_tokens: list[int]
    pruned_layers: int
    peak_prefill_bytes: int | None
    peak_decode_bytes: int | None
    peak_reserved_bytes: int | None
    kernels: dict[str, list[str]]
    decode_mode: str
    capture_ms: float
    prefill_mode: str
    choice_log_probs: list[list[float]]
    prefill_is_shared: bool = False
    document_is_own: bool = True

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values; states are none."""
        return self.cache_bytes.full + self.cache_bytes.window


def stop_token_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> frozenset[int]:
    """Every token at which the model's answers end.

    What the model's generation config says, which is what `model.generate` stops at; where it says
    nothing, the tokenizer's end-of-sequence token.
    """
    declared = getattr(model.generation_config, "eos_token_id", None)
    if declared is None:
        declared = getattr(tokenizer, "eos_token_id", None)
    if declared is None:
        return frozenset()
    return frozenset([declared] if isinstance(declared, int) else declared)


def check_request(
    model: PreTrainedModel,
    shape: Sequence[int],
    max_new_tokens: int,
    backend: str | Backend,
    pruning: Pruning | None,
    kv_bits: int | None,
    graphs: DecodeGraphs | None,
    prefill_chunk: int | None,
) -> list[LayerKind]:
    """The layers' kinds. Raises ValueError, or NotImplementedError, for what cannot be had."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
    if graphs is not None and (
        problem := decode_graph.reason_unsupported(
            graphs.model, batch=shape[0], backend=backend, pruning=pruning, kv_bits=kv_bits
        )
    ):
        raise ValueError(f"no decode step can be captured: {problem}")
    if prefill_chunk is not None and (problem := layered.reason_unsupported(model)):
        raise ValueError(f"no prefill one layer at a time: {problem}")
    kinds = layer_kinds(model.config, shape[1] + max_new_tokens)
    if (pruning or kv_bits) and not any(kind.is_full for kind in kinds):
        raise ValueError(f"no layer of {type(model).__name__} attends to the whole of such a text")
    return kinds


def _decode(
    forward: Forward,
    first: Prefilled,
    max_new_tokens: int,
    stop_tokens: Collection[int],
    graphs: DecodeGraphs | None,
    on_tokens: Callable[[list[int]], None] | None,
) -> tuple[list[list[int]], float]:
    """Each row's tokens, and the milliseconds from the first one to the last."""
    began = time.perf_counter()
    if graphs is None:
        step = rope_length.lengthening(forward.model, forward.cache, forward)
        steps = eager_steps(step, first.next_token)
    else:
        layers = forward.cache.attention_layers
        steps = graphs.steps(layers, first.next_token, forward.seen_tokens, max_new_tokens - 1)
    answers = answers_of(steps, first.first_tokens, max_new_tokens, stop_tokens, on_tokens)
    ended = time.perf_counter()
    return answers, (ended - began) * 1e3 if max(map(len, answers)) > 1 else 0.0


def answered(
    forward: Forward,
    first: Prefilled,
    kernels: dict[str, set[str]],
    *,
    document_ms: float | None,
    compress_ms: Callable[[], float],
    memory: PeakMemory,
    peak_prefill_bytes: int | None,
    max_new_tokens: int,
    stop_tokens: Collection[int],
    graphs: DecodeGraphs | None,
    on_tokens: Callable[[list[int]], None] | None = None,
    choice_tokens: Sequence[int] = (),
) -> Generation:
    """Decode after `first`, inside `use_attention`; the whole of what became of the request."""
    cache = forward.cache
    cache_bytes = cache.stored_bytes()
    stored_tokens = [layer.stored_tokens for layer in cache.attention_layers]
    capture_ms = 0.0
    if graphs is not None and max_new_tokens > 1:
        capture_ms = graphs.capture(cache.attention_layers, first.next_token, forward.seen_tokens)
        kernels["decode"] |= graphs.kernels
    memory.restart()
    answers, decode_ms = _decode(forward, first, max_new_tokens, stop_tokens, graphs, on_tokens)
    synchronize(memory.devices)
    compressed_ms = compress_ms()
    return Generation(
        new_tokens=answers,
        ttft_ms=first.ttft_ms,
        document_ms=document_ms,
        prefill_ms=first.ttft_ms - compressed_ms,
        compress_ms=compressed_ms,
        decode_ms=decode_ms,
        latency_ms=first.ttft_ms + decode_ms,
        cache_bytes=cache_bytes,
        stored_tokens=stored_tokens,
        pruned_layers=sum(layer.pruning is not None for layer in cache.attention_layers),
        peak_prefill_bytes=peak_prefill_bytes,
        peak_decode_bytes=memory.allocated(),
        peak_reserved_bytes=memory.reserved(),
        kernels={phase: sorted(found) for phase, found in kernels.items()},
        decode_mode="" if max_new_tokens == 1 else "eager" if graphs is None else "graph",
        capture_ms=capture_ms,
        prefill_mode="whole" if forward.prefill_chunk is None else "layered",
        choice_log_probs=log_probs(first.logits, choice_tokens),
    )


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    backend: str | Backend,
    max_new_tokens: int,
    pruning: Pruning | None = None,
    stop_tokens: Collection[int] = (),
    question_tokens: Sequence[int] | None = None,
    kv_bits: int | None = None,
    choice_tokens: Sequence[int] = (),
    graphs: DecodeGraphs | None = None,
    prefill_chunk: int | None = None,
    on_tokens: Callable[[list[int]], None] | None = None,
) -> Generation:
    """Greedy tokens after a batch of prompts; each layer's cache is pruned when it is prefilled.

    input_ids, attention_mask: (B, S), padded on the left.
    backend: one of `attention.names()`, or an object that does what they do.
    pruning: None keeps every token: then, as with `keep_ratio=1`, the tokens are those of
        `model.generate(do_sample=False)`.
    question_tokens: for each row, how many of its last tokens are not pruned but processed in one
        chunk against the pruned cache of the tokens before them, as a server does that caches
        documents. None: the whole prompt is pruned; the first new token then comes from the whole
        prompt's cache, and pruning shows from the second on.
    kv_bits: 8 or 4 stores what is kept of the prompt in so many bits (see `quantized`); None in
        the model's own dtype.
    choice_tokens: tokens whose log-probabilities as the first new token are wanted, of a softmax
        over the whole vocabulary in float32.
    graphs: decodes by a captured step, where `decode_graph.reason_unsupported` has nothing
        against it; None by calling the model for each token.
    prefill_chunk: prefill one layer at a time over chunks of this many rows (see `layered`); None
        all layers of the prompt at once. A question is read at once either way.
    on_tokens: called with each row's newest token, as soon as it is known; its time counts.

    Raises ValueError for prompts that are empty or padded on the right, and for settings that the
    model or the backend cannot meet; FloatingPointError for logits that are NaN.
    """
    kinds = check_request(
        model, input_ids.shape, max_new_tokens, backend, pruning, kv_bits, graphs, prefill_chunk
    )
    devices = {parameter.device for parameter in model.parameters()}
    device = next(model.get_input_embeddings().parameters()).device
    chunks = prompt_chunks(input_ids.to(device), attention_mask, question_tokens)
    stopwatch, memory = Stopwatch(), PeakMemory(devices)
    cache = PrunedCache(
        kinds,
        pruning,
        padding_or_none(chunks[0][1]),
        reserve_tokens=sum(tokens.shape[1] for tokens, _ in chunks[1:]) + max_new_tokens - 1,
        stopwatch=stopwatch,
        kv_bits=kv_bits,
        prompt_lengths=prompt_lengths(chunks),
    )
    forward = Forward(model, cache, len(input_ids), prefill_chunk)

    with use_attention(model, backend, cache) as kernels:
        memory.restart()
        synchronize(devices)
        first = read_prompt(forward, chunks)
        synchronize(devices)
        return answered(
            forward,
            first,
            kernels,
            document_ms=None if question_tokens is None else first.document_ms,
            compress_ms=stopwatch.total_ms,
            memory=memory,
            peak_prefill_bytes=memory.allocated(),
            max_new_tokens=max_new_tokens,
            stop_tokens=stop_tokens,
            graphs=graphs,
            on_tokens=on_tokens,
            choice_tokens=choice_tokens,
        )
