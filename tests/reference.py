"""Attention in float64, written from the definition, and what rounding may make of it elsewhere.

Sums in another order end in other last digits, and the order is the processor's: its vectors'
width, its threads. So no comparison has a tolerance that was measured on one machine.
"""

import math

import torch


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: tuple[int, ...] | None,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """query (B, Hq, Q, D), key and value (B, H, S, D) -> (B, Q, Hq, D); padding rows are NaN.

    The queries are the last Q of the S stored tokens; row b's tokens begin at starts[b]. The rest
    as in `kv_compression.attention.Backend`.
    """
    batch, query_heads, query_len, _ = query.shape
    stored = key.shape[2]
    group = query_heads // key.shape[1]
    output = torch.full(
        (batch, query_len, query_heads, value.shape[-1]), math.nan, dtype=torch.float64
    )
    for row in range(batch):
        first = starts[row] if starts else 0
        for place in range(query_len):
            own = stored - query_len + place
            if own < first:
                continue
            seen = slice(first if window is None else max(first, own + 1 - window), own + 1)
            for head in range(query_heads):
                seen_keys = key[row, head // group, seen].double().cpu()
                seen_values = value[row, head // group, seen].double().cpu()
                scores = seen_keys @ query[row, head, place].double().cpu() * scaling
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                total = scores
                if sinks is not None:
                    total = torch.cat([scores, sinks[head].double().cpu()[None]])
                weights = torch.exp(scores - torch.logsumexp(total, 0))
                output[row, place, head] = weights @ seen_values
    return output


def tolerance(expected: torch.Tensor, terms: int, dtype: torch.dtype = torch.float32) -> float:
    """Most by which numbers that are sums of `terms` products in `dtype` may be off.

    Errors of a sum grow like the root of its terms; 16 stands for what lies between typical and
    worst. terms: of a model, its longest sum times its layers.
    """
    largest = expected[expected.isfinite()].abs().max().item()
    return 16 * torch.finfo(dtype).eps * math.sqrt(terms) * largest


def attention_tolerance(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> float:
    """Most by which attention in float32 may be off: query (.., Q, D), key and value (.., S, D).

    A score's absolute error is its weight's relative one, in the weight and in the sum of all.
    """
    eps = torch.finfo(torch.float32).eps
    score = query.norm(dim=-1).max() * key.norm(dim=-1).max() * scaling
    score_error = eps * math.sqrt(query.shape[-1]) * score.item()
    return value.abs().max().item() * (2 * score_error + 2 * eps * math.sqrt(key.shape[-2]))
