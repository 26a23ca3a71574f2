"""Rows of a batch turned to begin with their first token, for methods that divide a text."""

import torch


def turned(states: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """(B, H, S, ...) with what stood at s + by[b] of row b at s; by: (B,) int64.

    By the row's padding its first token comes first and its padding last; by minus that, back.
    """
    stored = states.shape[2]
    index = (torch.arange(stored, device=states.device) + by[:, None]) % stored
    shape = index.shape[0], 1, stored, *[1] * (states.dim() - 3)
    return states.gather(2, index.view(shape).expand_as(states))


def padding_of(positions: torch.Tensor) -> torch.Tensor:
    """(B,) int64: how many of a row's stored tokens are padding, given (B, H or 1, S)."""
    return (positions[:, 0] < 0).sum(dim=-1)
