"""Attention over two sets of keys, from the attention over each: by their log-sum-exp."""

import importlib.util
from functools import cache

import torch


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def merged(
    output: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor
) -> torch.Tensor:
    """What the same queries make of both sets of keys, in the dtype and layout of `output`.

    output, other: (B, H, Q, D). lse, other_lse: float32 (B, H, Q, 1), the logarithms of the sums of
    the exponentials of the scaled scores, natural. `output` may be overwritten.
    """
    if output.is_cuda and _has_triton():
        from kv_compression.attention._merge_kernel import merge_

        return merge_(output, lse, other, other_lse)
    share = torch.sigmoid(other_lse - lse)  # of `other` in all weights
    result = output * (1 - share)  # in float32
    return result.addcmul_(other, share).to(output.dtype)


def with_sinks(output: torch.Tensor, lse: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """What attention without sinks becomes where each head has one, a score without a value.

    output: (B, Q, Hq, D). lse: float32 (B, Q, Hq), as of `merged`. sinks: (Hq,).
    """
    share = torch.sigmoid(lse - sinks.float())
    return (output * share[..., None]).to(output.dtype)
