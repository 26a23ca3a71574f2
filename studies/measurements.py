"""The results of the sweeps, read from their folder: a point for each run and context length."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from longctx import figures, load_results, outcomes, tables

Item = TypeVar("Item")
Key = TypeVar("Key")

# What a sweep's folder is not asked for: it tells no two points apart.
_NOT_TOLD = ("LOGDIR", "RESUME", "SKIP_DONE")


@dataclass(frozen=True)
class Point:
    """One run at one context length.

    sweep: the folder of the run, from the sweeps' folder.
    """

    sweep: str
    run: dict[str, Any]
    summary: dict[str, Any]

    @property
    def meta(self) -> dict[str, Any]:
        """The run's `run_meta`."""
        meta: dict[str, Any] = self.run["run_meta"]
        return meta

    def setting(self, name: str) -> Any:
        """The value of a variable."""
        return self.meta["variables"].get(name)

    @property
    def settings(self) -> str:
        """What was set, as text that is equal for runs of the same settings."""
        variables = self.meta["variables"].items()
        return json.dumps({name: value for name, value in variables if name not in _NOT_TOLD})

    @property
    def context_tokens(self) -> int:
        """The context length."""
        return int(self.summary["context_tokens"])

    @property
    def batch(self) -> int:
        """Prompts in one request."""
        return int(self.setting("BATCH_SIZE") or 1)

    @property
    def method(self) -> str:
        """The KV method; "full" for the full cache."""
        return "full" if self.setting("KV_MODE") == "none" else str(self.setting("KV_MODE"))

    @property
    def kept(self) -> float:
        """Share of the cache that is kept."""
        return 1.0 if self.method == "full" else float(self.setting("KEEP_RATIO"))

    @property
    def decode(self) -> str:
        """The decode loop that ran; before there were two it was the eager one."""
        return str(self.summary.get("decode_mode") or "eager")

    @property
    def weights(self) -> str:
        """The quantization of the weights, or their dtype."""
        quant = self.setting("QUANT_MODE")
        return str(self.setting("DTYPE") if quant == "none" else quant)

    @property
    def out_of_memory(self) -> bool:
        """Whether requests of this length, or of a shorter one before it, ran out of memory."""
        return bool(self.summary["n_oom"] or self.summary.get("skipped_after_oom_at"))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The requests that succeeded."""
        rows = (r for r in self.run["rows"] if r["context_tokens"] == self.context_tokens)
        return [row for row in rows if row["success"]]

    @property
    def is_partial(self) -> bool:
        """Whether fewer samples were scored than asked for, but some were."""
        return self.summary["total_count"] > 0 and outcomes.is_partial(self.summary)

    @property
    def note(self) -> str:
        """What a partial point lacks and why, and its scores with failures as 0."""
        about = f"{self.sweep}, {tables.label(self.meta)}, batch {self.batch}"
        as_0 = (
            f"; {name} {self.summary[name]:.3f}, with failures as 0 {value:.3f}"
            for name in self.meta["score_names"]
            if (value := self.summary.get(name + outcomes.AS_0)) is not None
            and self.summary.get(name) is not None
        )
        return outcomes.caption(self.summary, about) + "".join(as_0)

    def values(self, key: str) -> list[float]:
        """A figure of each request of the largest batch, by its key in rows, where measured."""
        return figures.named(key).values(outcomes.timed(self.rows))

    def shown(self, key: str) -> float | None:
        """The summary's value of a figure: p50 of times, of memory the most or the mean."""
        return figures.named(key).of_summary(self.summary)


def read(folder: Path) -> list[Point]:
    """Points of all results in a folder; of two runs of the same settings the later one.

    Sorted by context length, then as the runs were made.
    """
    latest: dict[Any, Point] = {}
    for path, run in load_results.find([folder]):
        sweep = path.parent.relative_to(folder).as_posix()
        for summary in run["ctx_summaries"]:
            point = Point(sweep, run, summary)
            key = sweep, point.meta["task"], point.settings, point.context_tokens
            if key not in latest or _made(latest[key]) <= _made(point):
                latest[key] = point
    return sorted(latest.values(), key=lambda point: (point.context_tokens, _made(point)))


def _made(point: Point) -> str:
    return str(point.meta["run_id"]).rpartition("_")[2]


def of_sweep(points: Iterable[Point], sweep: str) -> list[Point]:
    """The points of one folder."""
    return [point for point in points if point.sweep == sweep]


def marked(text: str, points: Iterable[Point]) -> str:
    """A cell of a table, marked where any of the points that it is of is partial."""
    return f"{text} {outcomes.MARK}" if any(point.is_partial for point in points) else text


def with_notes(name: str, text: str, points: Iterable[Point]) -> str:
    """A table with a paragraph for each partial point of its sweep, where a cell is marked.

    A table's name begins with its sweep's.
    """
    sweep = re.split(r"[ :,]", name)[0]
    notes = [p.note for p in points if p.is_partial and p.sweep.startswith(sweep)]
    return "\n\n".join([text, *notes]) if outcomes.MARK in text else text


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items by their key, in the order in which keys appear."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def percent(share: float) -> str:
    """A share kept, with no digit more than it has."""
    return f"{100 * share:.6g}%"


def about(points: Iterable[Point]) -> str:
    """Model, dtype and device of points, for a caption."""
    found = dict.fromkeys(
        f"{p.meta['model']}, {p.setting('DTYPE')}, {p.meta['device']['name']}" for p in points
    )
    return "; ".join(found)


Columns = tuple[Callable[[Point], float], Callable[[float], str]]  # a column's number, its heading
LENGTHS: Columns = (lambda point: point.context_tokens, "{:,}".format)
SHARES: Columns = (lambda point: -point.kept, lambda share: percent(-share))  # the largest first


def pivot(
    heads: Mapping[str, Callable[[Point], Any]],
    entries: Sequence[Item],
    cell: Callable[[Item], str],
    columns: Columns = LENGTHS,
    point_of: Callable[[Any], Point] = lambda point: point,
) -> str:
    """A table with a line for each combination of heads, and a column for each length or share."""
    number, heading = columns
    numbers = sorted({number(point_of(entry)) for entry in entries})
    rows = []
    for names, mine in grouped(
        entries, lambda entry: tuple(str(head(point_of(entry))) for head in heads.values())
    ).items():
        cells = {number(point_of(entry)): cell(entry) for entry in mine}
        rows.append([*names, *(cells.get(known, "") for known in numbers)])
    return tables.markdown([*heads, *map(heading, numbers)], rows)
