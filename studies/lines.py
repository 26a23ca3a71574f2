"""What the figures draw: lines of points out of the sweeps' results, with their styles."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from studies.comparisons import main_score
from studies.measurements import Point, grouped

# Okabe and Ito's colours, told apart by the colour-blind; markers tell them apart in grey.
Style = tuple[str, str]
_BLACK, _ORANGE, _SKY, _GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
_BLUE, _VERMILION, _PURPLE, _GREY = "#0072B2", "#D55E00", "#CC79A7", "#777777"

BACKENDS: dict[str, Style] = {
    "sdpa": (_BLUE, "o"),
    "flash2": (_ORANGE, "s"),
    "flex": (_GREEN, "^"),
    "eager": (_BLACK, "D"),
}
METHODS: dict[str, Style] = {
    "full": (_BLACK, "*"),
    "l2": (_VERMILION, "o"),
    "keydiff": (_BLUE, "s"),
    "expected_attention": (_PURPLE, "^"),
    "snapkv": (_GREEN, "v"),
    "tova": (_SKY, "D"),
    "window": (_ORANGE, "P"),
    "random": (_GREY, "X"),
}
KEPT: dict[float, Style] = {
    1.0: (_BLACK, "o"),
    0.75: (_SKY, "s"),
    0.5: (_GREEN, "^"),
    0.25: (_VERMILION, "D"),
}
WEIGHTS: dict[str, Style] = {"bnb8": (_ORANGE, "s"), "bnb4": (_BLUE, "^")}
CACHES: dict[str, Style] = {"int8": (_PURPLE, "v"), "int4": (_GREEN, "D")}
_PLAIN: Style = (_BLACK, "o")


@dataclass
class Line:
    """A line of a panel: x, median, fastest and slowest, or score and interval; where memory ended.

    dashes: matplotlib's name of the line's kind.
    """

    label: str
    style: Style
    dashes: str = "-"
    points: list[tuple[float, float, float, float]] = field(default_factory=list)
    out_of_memory: list[float] = field(default_factory=list)

    def add(self, x: float, point: Point, figure: str) -> None:
        """Put a figure of a run, with the range of its requests, at x; nothing if not measured."""
        value = point.median(figure)
        if value is not None:
            reached = [value, *point.values(figure)]
            self.points.append((x, value, min(reached), max(reached)))


def by_length(
    points: Iterable[Point], figure: str, line_of: Callable[[Point], tuple[str, Style, str]]
) -> list[Line]:
    """A line for each label, against the context length."""
    lines = []
    for (label, style, dashes), mine in grouped(points, line_of).items():
        line = Line(label, style, dashes)
        for point in mine:
            if point.out_of_memory:
                line.out_of_memory.append(point.context_tokens)
            else:
                line.add(point.context_tokens, point, figure)
        lines.append(line)
    return lines


def attention_lines(points: Sequence[Point], figure: str) -> list[Line]:
    """A line for each backend."""

    def line_of(point: Point) -> tuple[str, Style, str]:
        backend = point.setting("ATTN_IMPL")
        return backend, BACKENDS[backend], "-"

    return by_length(points, figure, line_of)


def kv_lines(points: Sequence[Point], figure: str) -> list[Line]:
    """A line for each share kept."""

    def line_of(point: Point) -> tuple[str, Style, str]:
        return f"{point.kept:.0%} kept", KEPT[point.kept], "-"

    return by_length(points, figure, line_of)


def quantization_lines(points: Sequence[Point], figure: str) -> list[Line]:
    """A line for each format of weights or cache, and decode loop."""

    def line_of(point: Point) -> tuple[str, Style, str]:
        weights, cache = point.setting("QUANT_MODE"), point.setting("KV_QUANT")
        label = point.weights if cache == "none" else f"{point.weights}, cache {cache}"
        style = CACHES[cache] if cache != "none" else WEIGHTS.get(weights, _PLAIN)
        return f"{label}, {point.decode}", style, _dashes(point)

    return by_length(points, figure, line_of)


def combined_lines(points: Sequence[Point], figure: str) -> list[Line]:
    """A line for each share kept and format of the weights; quantized ones are dotted."""

    def line_of(point: Point) -> tuple[str, Style, str]:
        is_plain = point.setting("QUANT_MODE") == "none"
        return f"{point.weights}, {point.kept:.0%} kept", KEPT[point.kept], "-" if is_plain else ":"

    return by_length(points, figure, line_of)


def method_lines(points: Sequence[Point], figure: str) -> list[Line]:
    """A line for each method, against the share kept; the full cache has none of its own."""
    lines = []
    for method, mine in grouped(points, lambda point: point.method).items():
        line = Line(method, METHODS[method])
        for point in sorted(mine, key=lambda point: -point.kept):
            line.add(point.kept, point, figure)
        lines.append(line)
    return lines


def quality_lines(points: Sequence[Point], cost: str) -> list[Line]:
    """A line for each method: the task's score, with its interval, against a cost."""
    lines = []
    for method, style in METHODS.items():
        line = Line(method, style)
        for point in sorted(points, key=lambda point: -point.kept):
            name = main_score(point.meta)
            value, score = point.median(cost), point.summary.get(name)
            if point.method == method and value is not None and score is not None:
                low, high = point.summary[f"{name}_ci95"] or (score, score)
                line.points.append((value, score, low, high))
        if line.points:
            lines.append(line)
    return lines


def _dashes(point: Point) -> str:
    return "--" if point.decode == "eager" else "-"
