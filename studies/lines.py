"""What the figures draw: lines of points out of the sweeps' results, with their styles."""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from studies.comparisons import main_score
from studies.measurements import Point, grouped, percent

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
KEPT: dict[str, Style] = {
    "100%": (_BLACK, "o"),
    "75%": (_SKY, "s"),
    "50%": (_GREEN, "^"),
    "25%": (_VERMILION, "D"),
}
FORMATS: dict[str, Style] = {
    "none": (_BLACK, "o"),
    "bnb8": (_ORANGE, "s"),
    "bnb4": (_BLUE, "^"),
    "int8": (_PURPLE, "v"),
    "int4": (_GREEN, "D"),
}
# Of names that are not above; no known one has such a marker.
_COLOURS = (_BLUE, _ORANGE, _GREEN, _SKY, _VERMILION, _PURPLE, _GREY)
_MARKERS = ("<", ">", "p", "h", "8", "d")


def style_of(name: str, known: Mapping[str, Style]) -> Style:
    """The style of a name; of one that is not known, always the same one of 42."""
    number = zlib.crc32(name.encode())
    colour, marker = number % len(_COLOURS), number // len(_COLOURS) % len(_MARKERS)
    return known.get(name) or (_COLOURS[colour], _MARKERS[marker])


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
        value = point.shown(figure)
        if value is not None:
            reached = [value, *point.values(figure)]
            self.points.append((x, value, min(reached), max(reached)))


LineOf = Callable[[Point], tuple[str, Style, str]]  # label, style, kind of the line


def by_length(line_of: LineOf, points: Iterable[Point], figure: str) -> list[Line]:
    """A line for each label, against the context length."""
    lines = []
    for about, mine in grouped(points, line_of).items():
        line = Line(*about)
        for point in mine:
            if point.out_of_memory:
                line.out_of_memory.append(point.context_tokens)
            else:
                line.add(point.context_tokens, point, figure)
        lines.append(line)
    return lines


def of_backend(point: Point) -> tuple[str, Style, str]:
    """A line for each backend."""
    backend = point.setting("ATTN_IMPL")
    return backend, style_of(backend, BACKENDS), "-"


def of_share(point: Point) -> tuple[str, Style, str]:
    """A line for each share kept."""
    kept = percent(point.kept)
    return f"{kept} kept", style_of(kept, KEPT), "-"


def of_format(point: Point) -> tuple[str, Style, str]:
    """A line for each format of weights or cache, and decode loop; that of eager is dashed."""
    weights, cache = point.setting("QUANT_MODE"), point.setting("KV_QUANT")
    label = point.weights if cache == "none" else f"{point.weights}, cache {cache}"
    style = style_of(weights if cache == "none" else cache, FORMATS)
    return f"{label}, {point.decode}", style, "--" if point.decode == "eager" else "-"


def of_format_and_share(point: Point) -> tuple[str, Style, str]:
    """A line for each share kept and format of the weights; quantized ones are dotted."""
    label, style, _ = of_share(point)
    return f"{point.weights}, {label}", style, "-" if point.setting("QUANT_MODE") == "none" else ":"


attention_lines = partial(by_length, of_backend)
kv_lines = partial(by_length, of_share)
quantization_lines = partial(by_length, of_format)
combined_lines = partial(by_length, of_format_and_share)


def method_lines(points: Sequence[Point], figure: str) -> list[Line]:
    """A line for each method, against the share kept; the full cache has none of its own."""
    lines = []
    for method, mine in grouped(points, lambda point: point.method).items():
        line = Line(method, style_of(method, METHODS))
        for point in sorted(mine, key=lambda point: -point.kept):
            line.add(point.kept, point, figure)
        lines.append(line)
    return lines


def quality_lines(points: Sequence[Point], cost: str) -> list[Line]:
    """A line for each method: the task's score, with its interval, against a cost."""
    lines = []
    found = grouped(points, lambda point: point.method)
    for method in sorted(found, key=lambda name: [*METHODS, name].index(name)):
        line = Line(method, style_of(method, METHODS))
        for point in sorted(found[method], key=lambda point: -point.kept):
            name = main_score(point.meta)
            value, score = point.shown(cost), point.summary.get(name)
            if value is not None and score is not None:
                low, high = point.summary[f"{name}_ci95"] or (score, score)
                line.points.append((value, score, low, high))
        if line.points:
            lines.append(line)
    return lines
