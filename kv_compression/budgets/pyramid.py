"""pyramid: early layers keep more than late ones (PyramidKV, Cai et al. 2024, arXiv 2406.02069)."""

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Budget:
    """From layer to layer the number falls by the same step.

    The last layer gets 1 / `slope` of the average, or more where the first would keep its whole
    prompt but `least` tokens. Where the last one would get less than `least`, all get the same.
    """

    slope: int = field(
        default=20,
        metadata={
            "env": "PYRAMID_SLOPE",
            "help": "the average number of tokens over that of the last layer",
        },
    )
    least: int = field(
        default=64,
        metadata={
            "env": "PYRAMID_LEAST",
            "help": "tokens that the last layer keeps at least; where it cannot, layers are alike",
        },
    )

    pool = "head"

    def __post_init__(self) -> None:
        if self.slope < 1:
            raise ValueError(f"PYRAMID_SLOPE must be 1 or more, not {self.slope}")
        if self.least < 0:
            raise ValueError(f"PYRAMID_LEAST must be 0 or more, not {self.least}")

    def of_layer(self, count: int, length: int, place: int, layers: int) -> int:
        """Of a line from the first to the last layer, rounded so that all add up."""
        last = count / self.slope
        if 2 * count - last >= length - self.least:
            last = 2 * count - (length - self.least)
        first = 2 * count - last
        if layers == 1 or not first >= last >= self.least:
            return count
        step = (first - last) / (layers - 1)

        def before(end: int) -> int:
            return math.floor(end * first - step * end * (end - 1) / 2 + 0.5)

        return before(place + 1) - before(place)

    def guaranteed(self, count: int) -> int:
        """All of a layer's."""
        return count
