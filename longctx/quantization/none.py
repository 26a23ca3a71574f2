"""none: the weights as they are, in DTYPE."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantization:
    """No quantization."""

    def check(self) -> None:
        """Always there."""

    def config(self) -> None:
        """Nothing to do."""
