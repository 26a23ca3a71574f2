"""Generation with an L2-pruned cache in one call."""

import warnings
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kv_compression.api import Inputs, run
from kv_compression.methods.l2 import Method as L2
from kv_compression.pruning import Pruning


def generate_with_l2_compress(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    inputs: Inputs,
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
    the first new token was known. Warns where nothing is pruned since all prompts are shorter than
    `prune_after`. Uses the backend that the model was loaded with.

    Raises ValueError for arguments out of range, right padding, layers that do not exist and a
    prompt that is all question.
    """
    pruning = Pruning(L2(), keep_ratio, prune_after, tuple(skip_layers or ()))
    input_ids = inputs if isinstance(inputs, torch.Tensor) else inputs["input_ids"]
    tokens = input_ids.shape[1]
    if keep_ratio < 1 and tokens < prune_after:
        problem = f"the prompt's {tokens} tokens are fewer than prune_after={prune_after}"
        warnings.warn(f"nothing is pruned: {problem}", stacklevel=2)
    output_ids, result = run(
        model,
        inputs,
        pruning,
        max_new_tokens=max_new_tokens,
        question_tokens=question_tokens,
        tokenizer=tokenizer,
    )
    return output_ids, result.ttft_ms
