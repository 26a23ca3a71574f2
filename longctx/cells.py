"""The runs of a sweep, from lines or from a grid of settings."""

import importlib
import itertools
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from longctx import config, redaction
from longctx.errors import CannotRunError, SettingError, raise_any

if TYPE_CHECKING:
    from longctx.task import Task

_LISTS = ("KV_MODE", "KEEP_RATIO", "KEEP_TOKENS", "KV_BUDGET")

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: a script, and the variables that it changes in the environment."""

    script: str
    changes: Mapping[str, str] = field(hash=False)

    @property
    def line(self) -> str:
        """As stdin would have it."""
        return shlex.join([self.script, *written(self.changes)])


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    problem: why it is not done, in one line; None where it is.
    results: its full results.
    seconds: from its start to its end.
    """

    problem: str | None
    results: Path | None = None
    seconds: float = 0.0


def written(changes: Mapping[str, str]) -> list[str]:
    """Each as NAME=value."""
    return [f"{name}={value}" for name, value in changes.items()]


def task_of(script: str) -> "Task":
    """The task of a script, below the project's folder or this one. Raises CannotRunError."""
    path = Path(script).resolve()
    folder = next((known for known in (ROOT, Path.cwd()) if path.is_relative_to(known)), None)
    try:
        assert folder is not None
        module = ".".join(path.relative_to(folder).with_suffix("").parts)
        task: Task = importlib.import_module(module).TASK
    except (ImportError, AttributeError, AssertionError):
        raise CannotRunError(f"{script} is not an evaluation script here") from None
    return task


def assignment(text: str) -> tuple[str, str]:
    """Name and value of `NAME=value`. Raises CannotRunError."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
        raise CannotRunError(f"{redaction.masked(text)!r} is not of the form NAME=value")
    if redaction.is_secret_name(name) or redaction.masked(value) != value:
        problem = "is a password or token, which would be shown; set it in the environment"
        raise CannotRunError(f"{name} {problem}")
    return name, value


def read(lines: Iterable[str]) -> list[Cell]:
    """The cells of all lines that are not empty, each once. Raises CannotRunError."""
    cells = []
    for script, *assignments in filter(None, map(shlex.split, lines)):
        task_of(script)
        cells.append(Cell(script, dict(map(assignment, assignments))))
    return list(dict.fromkeys(cells))


def grid(
    script: str, assignments: Sequence[str], base: Mapping[str, str] | None = None
) -> list[Cell]:
    """A cell for each combination of values, over those of `base`.

    Raises CannotRunError, for all that is wrong.
    """
    settings = task_of(script).settings
    axes = axes_of(settings, assignments)
    combinations = itertools.product(*axes.values())
    changes = (dict(zip(axes, values, strict=True)) for values in combinations)
    cells = [
        Cell(script, config.without_unused(settings, {**(base or {}), **mine})) for mine in changes
    ]
    return list(dict.fromkeys(cells))


def environments(settings: type, environ: Mapping[str, str]) -> list[Mapping[str, str]]:
    """The environments that lists in KV_MODE and its companions stand for.

    The full cache's first, then every combination; `environ` itself where none is a list. Raises
    CannotRunError, for all that is wrong.
    """
    lists = {name: environ[name] for name in _LISTS if "," in environ.get(name, "")}
    if not lists:
        return [environ]
    axes = axes_of(settings, [f"{name}={values}" for name, values in lists.items()])
    base = {name: value for name, value in environ.items() if name not in lists}
    combinations = [
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    ]
    changes = [{"KV_MODE": "none"}, *combinations]
    if all(mine.get("KV_MODE", base.get("KV_MODE", "none")) == "none" for mine in changes):
        names = " and ".join(lists)
        raise SettingError(names, ", ".join(lists.values()), "prunes nothing with KV_MODE=none")
    # So that the full cache's run is the same beside any lists.
    used = [config.without_unused(settings, base | mine, {}) for mine in changes]
    return [dict(mine) for mine in dict.fromkeys(tuple(mine.items()) for mine in used)]


def axes_of(settings: type, assignments: Sequence[str]) -> dict[str, list[str]]:
    """The values of each variable. Raises CannotRunError, for all that is wrong."""
    declared = {known.name: known for known in config.variables(settings)}
    pairs = [assignment(text) for text in assignments]
    near = config.misspelt([name for name, _ in pairs], declared)
    axes: dict[str, list[str]] = {}
    problems = []
    for name, text in pairs:
        known = declared.get(name)
        has_commas = known is None or known.is_list
        values = text.split(";" if has_commas or ";" in text else ",")
        if name in near:
            problem = f"is not a setting; did you mean {near[name]}?"
            problems.append(SettingError(name, text, problem))
        if name in axes or len(set(values)) < len(values):
            problems.append(SettingError(name, text, "gives the setting or a value twice"))
        for value in values:
            try:
                if known is not None:
                    known.parse(value)
            except SettingError as error:
                problems.append(error)
        axes[name] = values
    raise_any(problems)
    return axes
