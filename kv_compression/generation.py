"""Prefill, compress, decode: the one loop that every mode runs through, and its clock."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kv_compression import decode_graph, rope_length
from kv_compression.attention import Backend
from kv_compression.attention_hook import refuse_window, use_attention
from kv_compression.cache import PrunedCache
from kv_compression.decode_graph import DecodeGraphs
from kv_compression.greedy import answers_of, checked, eager_steps, log_probs, most_probable
from kv_compression.measure import PeakMemory, Stopwatch, synchronize
from kv_compression.prefill import layered
from kv_compression.prefill.last_layer import last_token_alone
from kv_compression.prefill.mlp import ROWS, mlp_in_row_chunks
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
    kv_bytes: keys and values stored once the prompt is compressed.
    stored_tokens: the same in tokens, for each layer.
    peak_prefill_bytes, peak_decode_bytes, peak_reserved_bytes: GPU memory, the last one held by the
        allocator in both phases; None without a GPU.
    kernels: names of the attention kernels that ran, under "prefill" and "decode".
    decode_mode: "eager" or "graph"; "" where one token was asked for, which the prefill makes.
    capture_ms: capturing the decode step, where this request was the first to need it; it is in no
        other figure.
    prefill_mode: "whole", or "layered": one layer at a time over chunks of rows.
    choice_log_probs: for each row, log-probabilities of `choice_tokens` as its first new token.
    """

    new_tokens: list[list[int]]
    ttft_ms: float
    document_ms: float | None
    prefill_ms: float
    compress_ms: float
    decode_ms: float
    latency_ms: float
    kv_bytes: int
    stored_tokens: list[int]
    peak_prefill_bytes: int | None
    peak_decode_bytes: int | None
    peak_reserved_bytes: int | None
    kernels: dict[str, list[str]]
    decode_mode: str
    capture_ms: float
    prefill_mode: str
    choice_log_probs: list[list[float]]


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


def _check_prefill(model: PreTrainedModel, prefill_chunk: int | None) -> None:
    """Raises ValueError for a prefill one layer at a time that `model` cannot have."""
    if prefill_chunk is not None and (problem := layered.reason_unsupported(model)):
        raise ValueError(f"no prefill one layer at a time: {problem}")


def _check_request(
    graphs: DecodeGraphs | None,
    shape: Sequence[int],
    max_new_tokens: int,
    backend: str | Backend,
    pruning: Pruning | None,
    kv_bits: int | None,
) -> None:
    """Raises ValueError, or NotImplementedError, for no new tokens and what a graph gets wrong."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
    if graphs is None:
        return
    problem = decode_graph.reason_unsupported(
        graphs.model, batch=shape[0], backend=backend, pruning=pruning, kv_bits=kv_bits
    )
    if problem:
        raise ValueError(f"no decode step can be captured: {problem}")
    refuse_window(graphs.window, shape[1] + max_new_tokens - 1)


class _Forward:
    """The model's forward over a cache, with each row's own positions.

    seen_tokens: (B, 1) int64, each row's tokens so far.
    """

    def __init__(
        self, model: PreTrainedModel, cache: PrunedCache, batch: int, prefill_chunk: int | None
    ):
        self.model, self.cache, self.prefill_chunk = model, cache, prefill_chunk
        self.device = next(model.get_input_embeddings().parameters()).device
        self.seen_tokens = torch.zeros(batch, 1, dtype=torch.long, device=self.device)

    def __call__(self, tokens: torch.Tensor, padding: Sequence[int] | None = None) -> torch.Tensor:
        """Logits of what follows, (B, V), after `tokens` (B, Q), of which `padding` come first."""
        index = torch.arange(tokens.shape[1], device=self.device)[None]
        if padding is not None:
            index = index - torch.tensor(padding, device=self.device)[:, None]
        self.cache.expect(left_padding=None if padding is None else padding_or_none(padding))
        # A token's position counts its row's tokens before it, whatever the cache still holds.
        position_ids = (self.seen_tokens + index).clamp(min=0)
        self.seen_tokens = position_ids[:, -1:] + 1
        if self.prefill_chunk is not None and not self.cache.layers[0].is_initialized:
            return layered.prefill(self.model, self.cache, tokens, position_ids, self.prefill_chunk)
        logits: torch.Tensor = self.model(
            input_ids=tokens,
            position_ids=position_ids,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]


@dataclass(frozen=True)
class _Prefilled:
    """The prompt's last logits, (B, V), the first new token of each row, and what they took."""

    logits: torch.Tensor
    next_token: torch.Tensor
    first_tokens: list[int]
    ttft_ms: float
    document_ms: float


def _prefill(forward: _Forward, chunks: Sequence[tuple[torch.Tensor, list[int]]]) -> _Prefilled:
    """Read the prompt, chunk after chunk, until the first new token is known on the host."""
    document = Stopwatch()
    mlp_rows = ROWS if forward.prefill_chunk is None else layered.MLP_ROWS
    with mlp_in_row_chunks(forward.model, mlp_rows), last_token_alone(forward.model, forward.cache):
        began = time.perf_counter()
        # Logits are back on the input's device, so its events enclose all others' work.
        with document.running(forward.device):
            logits = forward(*chunks[0])
        for tokens, padding in chunks[1:]:
            logits = forward(tokens, padding)
        next_token, known = most_probable(logits)
        first_tokens = checked(known, place=1)
        ttft_ms = (time.perf_counter() - began) * 1e3
    return _Prefilled(logits, next_token, first_tokens, ttft_ms, document.total_ms())


def _decode(
    forward: _Forward,
    first: _Prefilled,
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
        layers = forward.cache.layers
        steps = graphs.steps(layers, first.next_token, forward.seen_tokens, max_new_tokens - 1)
    answers = answers_of(steps, first.first_tokens, max_new_tokens, stop_tokens, on_tokens)
    ended = time.perf_counter()
    return answers, (ended - began) * 1e3 if max(map(len, answers)) > 1 else 0.0


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
    _check_request(graphs, input_ids.shape, max_new_tokens, backend, pruning, kv_bits)
    _check_prefill(model, prefill_chunk)
    devices = {parameter.device for parameter in model.parameters()}
    device = next(model.get_input_embeddings().parameters()).device
    chunks = prompt_chunks(input_ids.to(device), attention_mask, question_tokens)
    stopwatch, memory = Stopwatch(), PeakMemory(devices)
    cache = PrunedCache(
        model.config.get_text_config().num_hidden_layers,
        pruning,
        padding_or_none(chunks[0][1]),
        reserve_tokens=sum(tokens.shape[1] for tokens, _ in chunks[1:]) + max_new_tokens - 1,
        stopwatch=stopwatch,
        kv_bits=kv_bits,
        prompt_lengths=prompt_lengths(chunks),
    )
    forward = _Forward(model, cache, len(input_ids), prefill_chunk)

    with use_attention(model, backend, cache) as kernels:
        memory.restart()
        synchronize(devices)
        first = _prefill(forward, chunks)
        synchronize(devices)
        peak_prefill, kv_bytes = memory.allocated(), cache.stored_bytes()
        stored_tokens = [layer.stored_tokens for layer in cache.layers]
        capture_ms = 0.0
        if graphs is not None and max_new_tokens > 1:
            capture_ms = graphs.capture(cache.layers, first.next_token, forward.seen_tokens)
            kernels["decode"] |= graphs.kernels
        memory.restart()
        answers, decode_ms = _decode(forward, first, max_new_tokens, stop_tokens, graphs, on_tokens)
        synchronize(devices)

    compress_ms = stopwatch.total_ms()
    return Generation(
        new_tokens=answers,
        ttft_ms=first.ttft_ms,
        document_ms=None if question_tokens is None else first.document_ms,
        prefill_ms=first.ttft_ms - compress_ms,
        compress_ms=compress_ms,
        decode_ms=decode_ms,
        latency_ms=first.ttft_ms + decode_ms,
        kv_bytes=kv_bytes,
        stored_tokens=stored_tokens,
        peak_prefill_bytes=peak_prefill,
        peak_decode_bytes=memory.allocated(),
        peak_reserved_bytes=memory.reserved(),
        kernels={phase: sorted(found) for phase, found in kernels.items()},
        decode_mode="" if max_new_tokens == 1 else "eager" if graphs is None else "graph",
        capture_ms=capture_ms,
        prefill_mode="whole" if prefill_chunk is None else "layered",
        choice_log_probs=log_probs(first.logits, choice_tokens),
    )
