"""Attention in float64, written from the definition and from nothing that is tested."""

import math

import torch


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: tuple[int, ...] | None,
    scaling: float,
) -> torch.Tensor:
    """query (B, Hq, Q, D), key and value (B, H, S, D) -> (B, Q, Hq, D); padding rows are NaN.

    The queries are the last Q of the S stored tokens; row b's tokens begin at starts[b].
    """
    batch, query_heads, query_len, head_dim = query.shape
    stored = key.shape[2]
    group = query_heads // key.shape[1]
    output = torch.full((batch, query_len, query_heads, head_dim), math.nan, dtype=torch.float64)
    for row in range(batch):
        first = starts[row] if starts else 0
        for place in range(query_len):
            own = stored - query_len + place
            if own < first:
                continue
            for head in range(query_heads):
                seen_keys = key[row, head // group, first : own + 1].double().cpu()
                seen_values = value[row, head // group, first : own + 1].double().cpu()
                scores = seen_keys @ query[row, head, place].double().cpu() * scaling
                weights = torch.exp(scores - scores.max())
                output[row, place, head] = weights @ seen_values / weights.sum()
    return output
