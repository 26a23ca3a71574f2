"""Attention over two sets of keys, from the attention over each: by their log-sum-exp."""

import torch


def merged(
    output: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor
) -> torch.Tensor:
    """What the same queries make of both sets of keys, in the dtype and layout of `output`.

    output, other: (B, H, Q, D). lse, other_lse: float32 (B, H, Q, 1), the logarithms of the sums of
    the exponentials of the scaled scores, natural.
    """
    share = torch.sigmoid(other_lse - lse)  # of `other` in all weights
    result = output * (1 - share)  # in float32
    return result.addcmul_(other, share).to(output.dtype)
