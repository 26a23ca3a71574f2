"""uniform: every head of every layer keeps as many tokens."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """The same for all."""

    pool = "head"

    def of_layer(self, count: int, length: int, place: int, layers: int) -> int:
        """The average."""
        return count

    def guaranteed(self, count: int) -> int:
        """All of it."""
        return count
