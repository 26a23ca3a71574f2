"""The model's forward over a cache, and the reading of a prompt with it."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from kv_compression.cache import PrunedCache
from kv_compression.greedy import checked, most_probable
from kv_compression.measure import Stopwatch
from kv_compression.prefill import layered
from kv_compression.prefill.last_layer import last_token_alone
from kv_compression.prefill.mlp import ROWS, mlp_in_row_chunks
from kv_compression.prefill.state_rows import states_row_by_row
from kv_compression.selection import padding_or_none


class Forward:
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
        is_first, is_padded = not self.cache.attention_layers[0].is_initialized, any(padding or ())
        # Attention knows the padding from the cache; states must be told.
        mask = (index >= 0).long() if is_first and is_padded and self.cache.has_states else None
        with self._way_of_reading(tokens, padding or (), is_first):
            logits: torch.Tensor = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        return logits[:, -1]

    def _way_of_reading(
        self, tokens: torch.Tensor, padding: Sequence[int], is_first: bool
    ) -> AbstractContextManager[None]:
        if is_first and self.prefill_chunk is not None:
            return layered.layer_by_layer(self.model, self.cache, tokens.shape, self.prefill_chunk)
        if is_first or (tokens.shape[1] == 1 and not any(padding)):
            return nullcontext()
        return states_row_by_row(self.model, self.cache, padding)


@dataclass(frozen=True)
class Prefilled:
    """The prompt's last logits, (B, V), the first new token of each row, and what they took."""

    logits: torch.Tensor
    next_token: torch.Tensor
    first_tokens: list[int]
    ttft_ms: float
    document_ms: float


def read_prompt(forward: Forward, chunks: Sequence[tuple[torch.Tensor, list[int]]]) -> Prefilled:
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
    return Prefilled(logits, next_token, first_tokens, ttft_ms, document.total_ms())
