"""Generation with an L2-pruned cache in one call."""

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kv_compression.attention import backend_of
from kv_compression.generation import generate, stop_token_ids
from kv_compression.methods.l2 import Method as L2
from kv_compression.pruning import Pruning


def generate_with_l2_compress(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    inputs: Mapping[str, torch.Tensor] | torch.Tensor,
    max_new_tokens: int = 20,
    keep_ratio: float = 0.9,
    prune_after: int = 2048,
    skip_layers: Sequence[int] | None = None,
    *,
    question_tokens: int | Sequence[int] | None = None,
) -> tuple[torch.Tensor, float]:
    """Greedy generation, the prompt's cache pruned to the keys of lowest norm (arXiv 2406.11430).

    tokenizer: asked for the end-of-sequence and padding token where the model does not say.
    inputs: what the tokenizer returns with `return_tensors="pt"`: `input_ids` and, for a batch of
        unequal prompts padded on the left, `attention_mask`, (B, S) each; or `input_ids` alone.
    keep_ratio, prune_after: see `pruning.Pruning`.
    skip_layers: layers that are never pruned; None for none.
    question_tokens: how many of a prompt's last tokens, in each row or in all alike, are its
        question: they are not pruned but read against the pruned cache of what stands before, so
        that every new token sees it. None prunes the whole prompt; the first new token then comes
        from the full cache.

    Returns (output_ids, ttft_ms): prompt and new tokens, (B, S + new), rows that ended earlier
    filled up with the padding token, as `model.generate` returns them; and the milliseconds until
    the first new token was known. Uses the backend that the model was loaded with.

    Raises ValueError for arguments out of range, right padding, layers that do not exist and a
    prompt that is all question.
    """
    if isinstance(inputs, torch.Tensor):
        inputs = {"input_ids": inputs}
    input_ids = inputs["input_ids"]
    if isinstance(question_tokens, int):
        question_tokens = [question_tokens] * input_ids.shape[0]
    stop_tokens = stop_token_ids(model, tokenizer)
    result = generate(
        model,
        input_ids,
        inputs.get("attention_mask"),
        backend=backend_of(model),
        max_new_tokens=max_new_tokens,
        pruning=Pruning(L2(), keep_ratio, prune_after, tuple(skip_layers or ())),
        stop_tokens=stop_tokens,
        question_tokens=question_tokens,
    )
    padding = _padding_token(model, tokenizer, stop_tokens)
    longest = max(map(len, result.new_tokens))
    rows = [tokens + [padding] * (longest - len(tokens)) for tokens in result.new_tokens]
    new_ids = torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)
    return torch.cat([input_ids, new_ids], dim=1), result.ttft_ms


def _padding_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, stop_tokens: frozenset[int]
) -> int:
    """The token that `model.generate` fills rows up with."""
    for source in (model.generation_config, tokenizer):
        candidate = getattr(source, "pad_token_id", None)
        if isinstance(candidate, int):
            return candidate
    return min(stop_tokens, default=0)
