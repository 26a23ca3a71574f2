"""Prefill one layer at a time over chunks of rows, so that little exists at once besides the cache.

A layer's prompt is written chunk by chunk and pruned before the next layer begins, so that the
full-length keys and values of one layer exist, and intermediates of one chunk. Each chunk attends
to all the tokens before it: the result is that of the whole prefill.

The model's own decoder layers are called as they are. What stands around them is written here, so
only models are taken whose forward is known to be: embed, layers, norm, language-model head.
"""

from collections import deque
from typing import Any

import torch
from transformers import PreTrainedModel

from kv_compression.cache import PrunedCache

MODEL_TYPES = ("llama", "mistral", "phi3", "qwen2", "qwen3")
"""`model_type` of the configs of models that can be prefilled so."""

# At 2,048 rows the products are about as fast as at more, and a 7B model's MLP needs 0.2 GB.
MLP_ROWS = 2048


def is_known(model: PreTrainedModel) -> bool:
    """Whether the model's classes are transformers' own of one of MODEL_TYPES."""
    own = {f"transformers.models.{name}.modeling_{name}" for name in MODEL_TYPES}
    # A subclass elsewhere, such as code that came with a model, may do anything.
    return {type(model).__module__, type(model.base_model).__module__} <= own


def reason_unsupported(model: PreTrainedModel) -> str | None:
    """Why `model` cannot be prefilled one layer at a time, in a few words; None where it can."""
    if not is_known(model):
        known = ", ".join(MODEL_TYPES)
        return f"{type(model).__name__} is none of the model types {known}"
    if getattr(model, "_tp_size", None) not in (None, 1):
        return "the model is divided among processes"
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        return f"the model lies on {', '.join(sorted(map(str, devices)))}"
    return None


def prefill(
    model: PreTrainedModel,
    cache: PrunedCache,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    rows: int,
) -> torch.Tensor:
    """Write a prompt to the empty `cache`; logits of its last token, (B, V).

    Call it inside `use_attention` and `last_token_alone`.

    input_ids, position_ids: (B, S), padded on the left.
    rows: most tokens of all rows together in one chunk; at least one of each is taken. Chunks are
        counted from the start of the padded prompt, so that those of two prompts have equal shapes.
    """
    base: Any = model.base_model
    batch, tokens = input_ids.shape
    at_once = max(1, rows // batch)
    chunks = [slice(first, first + at_once) for first in range(0, tokens, at_once)]
    cache.expect(prompt_tokens=tokens)
    cos, sin = base.rotary_emb(base.embed_tokens(input_ids[:, :1]), position_ids)
    # A tensor for each chunk, so that the last layer can let go of them one by one.
    hidden = deque(base.embed_tokens(input_ids[:, chunk]) for chunk in chunks)
    for layer in base.layers:
        for chunk in chunks:
            output = layer(
                hidden.popleft(),
                attention_mask=None,
                position_ids=position_ids[:, chunk],
                past_key_values=cache,
                use_cache=True,
                position_embeddings=(cos[:, chunk], sin[:, chunk]),
            )
            hidden.append(output if layer is not base.layers[-1] else output[:, -1:].clone())
    logits: torch.Tensor = model.get_output_embeddings()(base.norm(hidden[-1]))
    return logits[:, -1]
