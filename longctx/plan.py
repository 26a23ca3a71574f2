"""How every request of a run is made, decided once the model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from kv_compression import decode_graph, quantized, rope_length
from kv_compression.attention import Backend
from kv_compression.decode_graph import DecodeGraphs
from kv_compression.generation import stop_token_ids
from kv_compression.prefill import layered
from kv_compression.pruning import Pruning
from longctx.console import notice
from longctx.errors import SettingError
from longctx.models import ModelSource
from longctx.prompts import Prompt, left_padded
from longctx.settings import Settings

# With fewer rows a whole prefill needs little more memory, and chunks only cost time.
_LEAST_CHUNKS = 2
# Larger chunks are faster; of very long prompts they would be a larger part of the peak than that
# is worth (`benchmarks/prefill.py`).
_CHUNK, _CHUNK_OF_LONG, _LONG = 6144, 3072, 65536


@dataclass(frozen=True)
class Plan:
    """What settings, model and machine allow together.

    backend: the name of the attention backend, or the backend that a task brings.
    kv_bits: bits of a stored number of the prompt's cache; None for the model's own dtype.
    choice_tokens: the tokens of the answers that are compared; empty where answers are generated.
    reads_question_apart: the context is pruned before the question is read.
    vocab_size: of random weights, which may know fewer tokens than the tokenizer; else None.
    prefill: "whole", "layered", or "auto": layered where the prompt is long.
    prefill_chunk: rows of a chunk; None goes by the prompt's length.
    graphs: None decodes eagerly.
    """

    model: PreTrainedModel
    backend: str | Backend
    max_new_tokens: int
    pruning: Pruning | None
    kv_bits: int | None
    choice_tokens: dict[str, int]
    stop_tokens: frozenset[int]
    reads_question_apart: bool
    vocab_size: int | None
    prefill: str
    prefill_chunk: int | None
    graphs: DecodeGraphs | None

    def arguments(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Arguments of `generate` for one request.

        Raises ValueError where rows of these lengths would be rotated wrongly.
        """
        input_ids, attention_mask = left_padded(prompts)
        # Rows with a shorter answer are cut when they are scored.
        max_new_tokens = max(self.answer_tokens(prompt) for prompt in prompts)
        for length in attention_mask.sum(dim=1).tolist():
            problem = rope_length.reason_lengths_unsupported(self.model, length, max_new_tokens)
            if problem:
                raise ValueError(problem)
        return {
            "input_ids": input_ids % self.vocab_size if self.vocab_size else input_ids,
            "attention_mask": attention_mask,
            "backend": self.backend,
            "max_new_tokens": max_new_tokens,
            "pruning": self.pruning,
            "stop_tokens": self.stop_tokens,
            "question_tokens": [prompt.question_tokens for prompt in prompts]
            if self.reads_question_apart
            else None,
            "kv_bits": self.kv_bits,
            "choice_tokens": list(self.choice_tokens.values()),
            "graphs": self.graphs,
            "prefill_chunk": self.chunk_rows(input_ids.numel()),
        }

    def answer_tokens(self, prompt: Prompt) -> int:
        """The longest answer to a prompt."""
        return min(self.max_new_tokens, prompt.answer_tokens or self.max_new_tokens)

    def chunk_rows(self, rows: int) -> int | None:
        """Rows of a chunk for `rows` prompt tokens, padding included; None for a whole prefill."""
        chunk = self.prefill_chunk or (_CHUNK if rows <= _LONG else _CHUNK_OF_LONG)
        is_layered = self.prefill == "layered" or rows > _LEAST_CHUNKS * chunk
        return chunk if is_layered and self.prefill != "whole" else None


def make(
    settings: Settings,
    source: ModelSource,
    model: PreTrainedModel,
    *,
    backend: str | Backend,
    pruning: Pruning | None = None,
    choice_tokens: dict[str, int] | None = None,
    is_first: bool = True,
) -> Plan:
    """The plan of a run's requests; `is_first`: this process talks to the terminal.

    Raises SettingError for PREFILL=layered and DECODE=graph where these cannot be.
    """
    kv_bits = quantized.BITS.get(settings.kv_quant)
    return Plan(
        model=model,
        backend=backend,
        max_new_tokens=settings.max_new_tokens,
        pruning=pruning,
        kv_bits=kv_bits,
        choice_tokens=choice_tokens or {},
        stop_tokens=frozenset() if source.is_random else stop_token_ids(model, source.tokenizer),
        reads_question_apart=settings.kv_scope == "context",
        vocab_size=source.config.vocab_size if source.is_random else None,
        prefill=_prefill(settings, model, backend),
        prefill_chunk=settings.prefill_chunk,
        graphs=_graphs(settings, model, backend, pruning, kv_bits, is_first),
    )


def _prefill(settings: Settings, model: PreTrainedModel, backend: str | Backend) -> str:
    problem = layered.reason_unsupported(model)
    if settings.prefill == "layered" and problem:
        raise SettingError("PREFILL", "layered", problem)
    # A mask over positions is made for a whole prefill.
    has_mask = not isinstance(backend, str)
    is_slower = settings.prefill == "auto" and (model.device.type != "cuda" or bool(problem))
    return "whole" if has_mask or is_slower else settings.prefill


def _graphs(
    settings: Settings,
    model: PreTrainedModel,
    backend: str | Backend,
    pruning: Pruning | None,
    kv_bits: int | None,
    is_first: bool,
) -> DecodeGraphs | None:
    """What DECODE asks for. On a GPU a note says why `auto` is eager; elsewhere nobody asks."""
    if settings.decode == "eager":
        return None
    problem = decode_graph.reason_unsupported(
        model, batch=settings.batch_size, backend=backend, pruning=pruning, kv_bits=kv_bits
    )
    if problem is None:
        return DecodeGraphs(model, compiled=settings.compile)
    if settings.decode == "graph":
        raise SettingError("DECODE", "graph", f"cannot be, since {problem}; use DECODE=eager")
    if is_first and model.device.type == "cuda":
        notice(f"DECODE=eager, since {problem}")
    return None
