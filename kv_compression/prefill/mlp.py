"""Bound what a long prefill needs: the MLP's intermediate rows, wider than any other tensor."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from transformers import PreTrainedModel

from kv_compression.replacements import replaced_forwards

# At 8,192 rows the products are as fast as at all rows; a 7B model then needs 0.7 GB for them.
ROWS = 8192


@contextmanager
def mlp_in_row_chunks(model: PreTrainedModel, rows: int = ROWS) -> Iterator[None]:
    """Inside the block every MLP of `model` computes at most `rows` tokens at a time.

    An MLP treats each token for itself, so the result is the same up to the rounding of a matrix
    product of another height. Only MLPs made of one down projection are changed, not mixtures of
    experts.
    """
    mlps = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    mlps = [mlp for mlp in mlps if isinstance(getattr(mlp, "down_proj", None), torch.nn.Module)]
    with replaced_forwards((mlp, partial(_in_chunks, mlp.forward, rows)) for mlp in mlps):
        yield


def _in_chunks(
    forward: Callable[[torch.Tensor], torch.Tensor], rows: int, hidden: torch.Tensor
) -> torch.Tensor:
    """hidden (B, Q, hidden size)."""
    at_once = max(1, rows // hidden.shape[0])
    if hidden.shape[1] <= at_once:
        return forward(hidden)
    output = torch.empty_like(hidden)
    for first in range(0, hidden.shape[1], at_once):
        output[:, first : first + at_once] = forward(hidden[:, first : first + at_once])
    return output
