"""whole_model: all heads of all layers compete, as in KVzip (Kim et al. 2025, arXiv 2505.23416).

Nothing is dropped before the last layer has been read, so a prefill holds the full cache.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Budget:
    """The highest scores of all layers stay; a share of the average is every head's.

    Meant for methods whose scores can be compared between layers, such as attention weights.
    """

    guarantee: float = field(
        default=0.2,
        metadata={
            "env": "WHOLE_MODEL_GUARANTEE",
            "help": "share of the average that every head keeps for certain",
        },
    )

    pool = "model"

    def __post_init__(self) -> None:
        if not 0 <= self.guarantee <= 1:
            raise ValueError(f"WHOLE_MODEL_GUARANTEE must lie in [0, 1], not {self.guarantee}")

    def of_layer(self, count: int, length: int, place: int, layers: int) -> int:
        """The average."""
        return count

    def guaranteed(self, count: int) -> int:
        """The share, rounded down."""
        return int(count * self.guarantee)
