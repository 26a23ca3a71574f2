"""`generate`: any pruning method in one call, as `model.generate` is called."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from kv_compression import budgets, generation, methods
from kv_compression.attention import backend_of
from kv_compression.generation import Generation, stop_token_ids
from kv_compression.pruning import Pruning

Inputs = Mapping[str, torch.Tensor] | torch.Tensor


def generate(
    model: PreTrainedModel,
    inputs: Inputs,
    *,
    method: str = "l2",
    keep_ratio: float = 0.5,
    keep_tokens: int | None = None,
    prune_after: int = 0,
    skip_layers: Sequence[int] = (),
    budget: str = "uniform",
    max_new_tokens: int = 20,
    question_tokens: int | Sequence[int] | None = None,
    streamer: BaseStreamer | None = None,
    **parameters: Any,
) -> torch.Tensor:
    """Greedy generation with the prompt's cache pruned by `method`.

    inputs: what the tokenizer returns with `return_tensors="pt"`: `input_ids` and, for a batch of
        unequal prompts padded on the left, `attention_mask`, (B, S) each; or `input_ids` alone.
    method: one of `methods.names()`; `parameters` are its own, such as `window=64` of snapkv.
    keep_ratio, keep_tokens, prune_after, skip_layers: see `pruning.Pruning`.
    budget: one of `budgets.names()`: how what is kept is shared out among heads and layers.
    question_tokens: how many of a prompt's last tokens, in each row or in all alike, are its
        question: they are not pruned but read against the pruned cache of what stands before, so
        that every new token sees it. None prunes the whole prompt; the first new token then comes
        from the full cache.
    streamer: gets the prompt, then each token, as in transformers; for one prompt at a time.

    Returns output_ids as `model.generate` does: prompt and new tokens, (B, S + new), rows that
    ended earlier filled up with the padding token. With keep_ratio=1.0 they are those of
    `model.generate(do_sample=False)`. Uses the attention that the model was loaded with.

    Raises ValueError for an unknown method or budget, arguments out of range, right padding, layers
    that do not exist, a prompt that is all question, and a streamer for several prompts; TypeError
    for a parameter that the method does not have.
    """
    pruning = Pruning(
        methods.method_class(method)(**parameters),
        keep_ratio,
        prune_after,
        tuple(skip_layers),
        keep_tokens,
        budget=budgets.budget_class(budget)(),
    )
    return run(
        model,
        inputs,
        pruning,
        max_new_tokens=max_new_tokens,
        question_tokens=question_tokens,
        streamer=streamer,
    )[0]


def run(
    model: PreTrainedModel,
    inputs: Inputs,
    pruning: Pruning,
    *,
    max_new_tokens: int,
    question_tokens: int | Sequence[int] | None = None,
    streamer: BaseStreamer | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[torch.Tensor, Generation]:
    """The output ids that `generate` returns, and what they cost.

    tokenizer: asked for the end-of-sequence and padding token where the model does not say.
    """
    inputs = {"input_ids": inputs} if isinstance(inputs, torch.Tensor) else inputs
    input_ids = inputs["input_ids"]
    if isinstance(question_tokens, int):
        question_tokens = [question_tokens] * input_ids.shape[0]
    if streamer is not None:
        if len(input_ids) > 1:
            raise ValueError(f"a streamer takes one prompt at a time, not {len(input_ids)}")
        streamer.put(input_ids.cpu())
    stop_tokens = stop_token_ids(model, tokenizer)
    result = generation.generate(
        model,
        input_ids,
        inputs.get("attention_mask"),
        backend=backend_of(model),
        max_new_tokens=max_new_tokens,
        pruning=pruning,
        stop_tokens=stop_tokens,
        question_tokens=question_tokens,
        on_tokens=None if streamer is None else lambda ids: streamer.put(torch.tensor(ids)),
    )
    if streamer is not None:
        streamer.end()
    padding = _padding_token(model, tokenizer, stop_tokens)
    longest = max(map(len, result.new_tokens))
    rows = [tokens + [padding] * (longest - len(tokens)) for tokens in result.new_tokens]
    new_ids = torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)
    return torch.cat([input_ids, new_ids], dim=1), result


def _padding_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, stop_tokens: frozenset[int]
) -> int:
    """The token that `model.generate` fills rows up with."""
    for source in (model.generation_config, tokenizer):
        candidate = getattr(source, "pad_token_id", None)
        if isinstance(candidate, int):
            return candidate
    return min(stop_tokens, default=0)
