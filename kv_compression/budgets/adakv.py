"""adakv: a layer's heads compete for its tokens (Ada-KV, Feng et al. 2024, arXiv 2407.11550)."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Budget:
    """The highest scores of all heads of a layer stay; a share of its average is every head's."""

    guarantee: float = field(
        default=0.2,
        metadata={
            "env": "ADAKV_GUARANTEE",
            "help": "share of the average that every head keeps for certain",
        },
    )

    pool = "layer"

    def __post_init__(self) -> None:
        if not 0 <= self.guarantee <= 1:
            raise ValueError(f"ADAKV_GUARANTEE must lie in [0, 1], not {self.guarantee}")

    def of_layer(self, count: int, length: int, place: int, layers: int) -> int:
        """The average."""
        return count

    def guaranteed(self, count: int) -> int:
        """The share, rounded down."""
        return int(count * self.guarantee)
