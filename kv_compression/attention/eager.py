"""eager: two matrix products and a softmax in float32; all scores exist at once."""

import torch

from kv_compression.layout import Layout


def check(device_type: str, dtype: torch.dtype) -> None:
    """Runs everywhere."""


def features() -> frozenset[str]:
    """All that models ask for."""
    return frozenset({"window", "softcap", "sinks"})


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, str]:
    """See the package. A group's query heads are one longer block of rows: no key is repeated."""
    batch, query_heads, query_len, head_dim = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, head_dim)
    scores = (grouped @ key.transpose(2, 3) * scaling).view(batch, query_heads, query_len, -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if query_len > 1 or layout.left_padding is not None:
        scores = scores.masked_fill(~layout.mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(batch, -1, query_len, 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)[..., : key.shape[2]]
    output = weights.reshape(batch, key.shape[1], -1, key.shape[2]) @ value
    return output.view(batch, query_heads, query_len, -1).transpose(1, 2), "eager"
