"""criticalkv: by attention first, then by what a value comes to (Feng et al., arXiv 2502.03805)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kv_compression.methods import snapkv

if TYPE_CHECKING:
    import torch

    from kv_compression.methods import StoredLayer

_EPSILON = 1e-4  # so that tokens without attention are told apart by their values
_TOKENS = 4096  # whose projected values exist at once


@dataclass(frozen=True)
class Method:
    """Half of the tokens stay by SnapKV's scores, the rest by these times the projected value.

    That is the L1 norm of the value behind the layer's output projection, mean over the group, so
    that an upper bound of the error of the layer's output falls. Where a layer's heads compete,
    they do so by SnapKV's scores, as in the paper's form with Ada-KV.
    """

    window: int = field(
        default=64,
        metadata={"env": "CRITICALKV_WINDOW", "help": "last tokens whose attention decides"},
    )
    kernel: int = field(
        default=5,
        metadata={"env": "CRITICALKV_KERNEL", "help": "tokens that are averaged over; odd"},
    )
    first: float = field(
        default=0.5,
        metadata={"env": "CRITICALKV_FIRST", "help": "share that stays by attention alone"},
    )

    needs_output_weight = scores_by_counts = True

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"CRITICALKV_WINDOW must be 1 or more, not {self.window}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"CRITICALKV_KERNEL must be odd, not {self.kernel}")
        if not 0 <= self.first <= 1:
            raise ValueError(f"CRITICALKV_FIRST must lie in [0, 1], not {self.first}")

    @property
    def query_window(self) -> int:
        """The observation window."""
        return self.window

    def score(self, layer: StoredLayer) -> torch.Tensor:
        """(B, H, S) float32; raises ValueError where the projection or counts are not known."""
        import torch

        from kv_compression.selection import highest_of_heads, select_pooled

        if layer.output_weight is None or layer.counts is None or layer.budget is None:
            raise ValueError("criticalkv needs the layer's output projection and its budget")
        attention = snapkv.Method(self.window, self.kernel).score(layer)
        stored, heads = attention.shape[2], attention.shape[1]
        padding = (layer.positions < 0).sum(dim=2)
        counts = torch.tensor(layer.counts, device=attention.device)[:, None].expand(-1, heads)
        pooled = None
        if layer.budget.pool == "layer":
            totals = [count * heads for count in layer.counts]
            sure = [layer.budget.guaranteed(count) for count in layer.counts]
            pooled = select_pooled(attention, padding, totals, sure)
            counts = pooled.counts(heads, stored)
        by_attention = highest_of_heads(attention, padding, (counts * self.first).long())
        scores = (attention + _EPSILON) * _projected_norms(layer)
        scores = scores.masked_fill(by_attention, torch.finfo(torch.float32).max)
        if pooled is not None:
            # Each head's own number is known, so all that stay stand above the others.
            stays = highest_of_heads(scores, padding, counts)
            scores = stays.float() + torch.arange(stored, device=scores.device) / (4 * stored)
        return scores


def _projected_norms(layer: StoredLayer) -> torch.Tensor:
    """(B, H, S) float32: L1 norm of each value behind the output projection, mean over the group.

    Head by head and part by part: together they would be Hq times the hidden states.
    """
    import torch

    assert layer.output_weight is not None
    heads, head_dim = layer.values.shape[1], layer.values.shape[3]
    # (H, G, D, hidden size)
    weights = layer.output_weight.T.unflatten(0, (heads, -1, head_dim))
    found = []
    for head, of_group in enumerate(weights):
        norms = torch.zeros(layer.values[:, head, :, 0].shape, device=weights.device)
        for begin in range(0, norms.shape[1], _TOKENS):
            some = slice(begin, begin + _TOKENS)
            for weight in of_group:
                projected = layer.values[:, head, some].float() @ weight.float()
                norms[:, some] += projected.abs().sum(dim=-1)
        found.append(norms / len(of_group))
    return torch.stack(found, dim=1)
