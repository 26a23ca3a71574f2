"""The projection behind a layer's attention, for methods that ask what a value comes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAMES = ("o_proj", "out_proj", "dense")


def output_weight(module: Any) -> torch.Tensor:
    """(hidden size, Hq * D) of an attention module's output projection."""
    projection = _projection(module)
    assert projection is not None
    return projection.weight


def reason_unsupported(model: PreTrainedModel) -> str | None:
    """Why the weights are not known in `model`, in a few words; None where they are."""
    if getattr(model.config.get_text_config(), "kv_lora_rank", None) is not None:
        return f"{type(model).__name__} stores no values of its heads"
    for module in model.modules():
        name = type(module).__name__
        is_attention = name.endswith("Attention") and hasattr(module, "layer_idx")
        if is_attention and _projection(module) is None:
            return f"that of {name} is no plain linear layer, or not known"
    return None


def _projection(module: Any) -> torch.nn.Linear | None:
    found = [getattr(module, name) for name in _NAMES if hasattr(module, name)]
    if len(found) != 1 or type(found[0]) is not torch.nn.Linear:
        return None
    projection: torch.nn.Linear = found[0]
    return projection
