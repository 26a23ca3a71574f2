"""qfilters: keys along the queries' main direction (Godey et al. 2025, arXiv 2503.02812)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from kv_compression.methods import StoredLayer


@dataclass(frozen=True)
class Method:
    """The projection of a key onto its head's filter: the first right singular vector of queries.

    It points to where queries are on average; of a group the mean counts. The paper's filters come
    once for all texts from others, which `python -m longctx.qfilters` writes to a file; without one
    they come from the prompt's own queries.
    """

    file: str = field(
        default="",
        metadata={
            "env": "QFILTERS_FILE",
            "help": "filters of this model, from `python -m longctx.qfilters`; unset: from each "
            "prompt's own queries",
        },
    )

    def __post_init__(self) -> None:
        if self.file:
            _read(self.file)

    @property
    def all_prompt_queries(self) -> bool:
        """Whether the filters come from the prompt."""
        return not self.file

    @property
    def query_window(self) -> int:
        """Enough for a direction, where a prompt's queries are gone."""
        return 0 if self.file else 256

    def score(self, layer: StoredLayer) -> torch.Tensor:
        """(B, H, S) float32; raises ValueError for a file that does not fit the layer."""
        import torch

        if self.file:
            mine = _read(self.file).get(str(layer.layer_idx))
            if mine is None or mine.shape != layer.keys.shape[1::2]:
                raise ValueError(f"QFILTERS_FILE={self.file} is not of this model")
            of_heads = mine.to(layer.keys.device)[None]
        else:
            queries, positions = layer.last_queries()
            of_heads = filters_of(*moments(queries, positions), layer.keys.shape[1])
        parts = [
            (head.keys[:, 0].float() @ of_heads[:, number, :, None])[..., 0]
            for number, head in enumerate(layer.by_head())
        ]
        return torch.stack(parts, dim=1)


def moments(queries: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over queries: q q^T, (B, Hq, D, D), and q, (B, Hq, D), in float64, padding left out.

    queries (B, Hq, Q, D), positions (B, Q), negative for padding.
    """
    import torch

    counted = queries.double() * (positions >= 0)[:, None, :, None]
    squares = torch.stack([head.transpose(1, 2) @ head for head in counted.unbind(1)], dim=1)
    return squares, counted.sum(dim=2)


def filters_of(squares: torch.Tensor, sums: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, H, D) float32: each head's filter, given the moments of its group's queries."""
    import torch

    main = torch.linalg.eigh(squares).eigenvectors[..., -1]  # (B, Hq, D)
    sign = torch.where((main * sums).sum(dim=-1, keepdim=True) < 0, -1.0, 1.0)
    return (main * sign).unflatten(1, (heads, -1)).mean(dim=2).float()


@lru_cache(4)
def _read(file: str) -> dict[str, torch.Tensor]:
    """(H, D) float32 by the layer's number. Raises ValueError for a file that cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, torch.Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"QFILTERS_FILE={file} cannot be read: {error}") from None
    return found
