"""Every setting, declared once: that one declaration parses, validates, helps and documents.

A setting is a dataclass field made by `variable`, in `longctx.settings` or in a script; its
environment variable is the field's name in capitals. KV methods and quantizations declare their own
parameters, in their own files, as fields with the same metadata. `os.environ` is read in no other
place.
"""

import argparse
import dataclasses
import difflib
import importlib
import os
import shlex
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from kv_compression import methods
from longctx import console, quantization, redaction
from longctx.console import notice
from longctx.tables import markdown

Choices = tuple[str, ...] | Callable[[], tuple[str, ...]]
AnySettings = TypeVar("AnySettings")

GROUPS = ("what is run", "attention", "KV cache", "weights", "speed", "runs")
"""Headings of `--help`, in its order."""

_KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}


class CannotRunError(ValueError):
    """What keeps a run from starting; the message is one line for the person at the terminal."""


class SettingError(CannotRunError):
    """A setting that cannot be used; what has the shape of a secret is masked.

    example: lines of what can be, shown below the error.
    """

    def __init__(self, variable: str, value: object, problem: str, example: str = ""):
        super().__init__(redaction.masked(f"{variable}={value}: {problem}"))
        self.example = example


class SettingErrors(CannotRunError):
    """Several settings that cannot be used."""

    def __init__(self, problems: list[SettingError]):
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


def variable(
    default: Any,
    help: str,
    *,
    group: str = "what is run",
    choices: Choices | None = None,
    unused_when: tuple[str, ...] | None = None,
    changes_results: bool = True,
) -> Any:
    """A field that an environment variable sets.

    group: one of GROUPS.
    choices: the values allowed, or a function that lists them.
    unused_when: (other variable, value, ...): with any of these this one has no effect.
    changes_results: whether two runs that differ in it may differ in their figures.
    """
    metadata = {
        "help": help,
        "group": group,
        "choices": choices,
        "unused_when": unused_when,
        "changes_results": changes_results,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Variable:
    """One environment variable, wherever it was declared."""

    name: str
    field: str
    annotation: Any
    default: Any
    help: str
    group: str
    choices: tuple[str, ...] | None
    unused_when: tuple[str, ...] | None
    changes_results: bool
    owner: tuple[str, str] | None
    """(variable, value) of the KV method or quantization that it belongs to."""

    @property
    def is_list(self) -> bool:
        """Whether its value is several, with commas between."""
        return get_origin(_bare(self.annotation)) is tuple

    def parse(self, text: str) -> Any:
        """The value that `text` stands for. Raises SettingError."""
        if redaction.masked(text) != text:
            problem = "holds a password or token, which results would show"
            raise SettingError(self.name, text, problem)
        if not text.strip() and not self.is_list:
            raise SettingError(self.name, text, "is empty; leave it unset for its default")
        value: Any = text.strip()
        if self.is_list:
            value = [part.strip() for part in text.split(",")] if text.strip() else []
            if len(set(value)) < len(value):
                raise SettingError(self.name, text, "names a value twice")
        if self.choices is not None and value not in self.choices:
            close = difflib.get_close_matches(value.lower(), self.choices, n=1, cutoff=0.7)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise SettingError(self.name, text, f"choose one of {', '.join(self.choices)}{hint}")
        try:
            return TypeAdapter(self.annotation).validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"].replace("Input should", "should")
            example = f"; for example {self.name}={text_of(self.default)}"
            raise SettingError(
                self.name, text, problem + (example if self.is_list else "")
            ) from None


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def text_of(value: Any) -> str:
    """A value as one would write it in the shell."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def _declared(
    cls: type, owner: tuple[str, str] | None = None, group: str = ""
) -> Iterator[Variable]:
    hints = get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        assert field.default is not MISSING
        meta = field.metadata
        choices = meta.get("choices")
        yield Variable(
            name=meta.get("env", field.name.upper()),
            field=field.name,
            annotation=hints[field.name],
            default=field.default,
            help=meta["help"],
            group=group or meta["group"],
            choices=choices() if callable(choices) else choices,
            unused_when=meta.get("unused_when"),
            changes_results=meta.get("changes_results", True),
            owner=owner,
        )


def variables(cls: type) -> list[Variable]:
    """Every variable of a script: its settings, then those of the plug-ins that it can choose."""
    found = list(_declared(cls))
    groups = {known.name: known.group for known in found}
    if group := groups.get("KV_MODE"):
        for name in methods.names():
            found += _declared(methods.method_class(name), ("KV_MODE", name), group)
    if group := groups.get("QUANT_MODE"):
        for name in quantization.names():
            found += _declared(quantization.quantization_class(name), ("QUANT_MODE", name), group)
    return found


@dataclass(frozen=True)
class Launch:
    """What torchrun says of this process: its rank, of how many, and its rank on this machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Launch":
        """One process alone where torchrun has not started it."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if "TORCHELASTIC_RUN_ID" not in environ:
            return cls()
        return cls(*(int(environ[name]) for name in names))


@dataclass(frozen=True)
class Environment:
    """What the environment says: settings, the parameters of plug-ins, and what was set at all."""

    values: Mapping[str, Any]
    is_set: frozenset[str]
    declared: list[Variable]
    launch: Launch = Launch()

    def parameters(self, variable: str, value: str) -> dict[str, Any]:
        """Keyword arguments for the plug-in that `variable` = `value` chooses."""
        mine = [known for known in self.declared if known.owner == (variable, value)]
        return {known.field: self.values[known.name] for known in mine}

    def method(self) -> methods.PruningMethod | None:
        """The KV method that KV_MODE chooses, with its parameters."""
        name = self.values["KV_MODE"]
        if name == "none":
            return None
        return methods.method_class(name)(**self.parameters("KV_MODE", name))

    def quantization(self) -> quantization.Quantization:
        """The quantization that QUANT_MODE chooses, with its parameters."""
        name = self.values["QUANT_MODE"]
        return quantization.quantization_class(name)(**self.parameters("QUANT_MODE", name))

    def command(self, script: str) -> str:
        """The shell line that runs `script` again."""
        changed = [
            f"{known.name}={shlex.quote(text_of(self.values[known.name]))}"
            for known in self.declared
            if known.name in self.is_set
        ]
        return " ".join([*changed, "python", script])

    def fingerprint_values(self) -> dict[str, Any]:
        """Values of the variables that can change a figure."""
        return {
            known.name: self.values[known.name] for known in self.declared if known.changes_results
        }


def guard() -> None:
    """Before anything else in a command: what it prints is plain text without secrets."""
    redaction.remember(os.environ)
    console.guard()


def read(
    cls: type[AnySettings], environ: Mapping[str, str] | None = None
) -> tuple[AnySettings, Environment]:
    """Settings from `environ`, by default the process's.

    Prints a notice for a variable that looks misspelt or has no effect. Raises SettingError, or
    SettingErrors where several values cannot be used.
    """
    environ = os.environ if environ is None else environ
    declared = variables(cls)
    given = {known.name: environ[known.name] for known in declared if known.name in environ}
    redaction.remember(os.environ, environ)
    values, problems = {}, []
    for known in declared:
        try:
            is_given = known.name in given
            values[known.name] = known.parse(given[known.name]) if is_given else known.default
        except SettingError as error:
            problems.append(error)
    for name, close in misspelt(environ, values).items():
        notice(f"{name} is not a setting; did you mean {close}?")
    if problems:
        raise problems[0] if len(problems) == 1 else SettingErrors(problems)
    for known in declared:
        condition = known.unused_when
        if known.owner is not None and values[known.owner[0]] != known.owner[1]:
            condition = (known.owner[0], values[known.owner[0]])
        if known.name in given and condition and values[condition[0]] in condition[1:]:
            notice(f"{known.name} has no effect with {condition[0]}={values[condition[0]]}")
    own = {known.field: values[known.name] for known in declared if known.owner is None}
    return cls(**own), Environment(values, frozenset(given), declared, Launch.of(environ))


def environment_with(changes: Mapping[str, str]) -> dict[str, str]:
    """The process's environment with `changes`."""
    return {**os.environ, **changes}


def tell_libraries(name: str, value: str) -> None:
    """Set a variable that only a library reads."""
    os.environ[name] = value


def misspelt(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Names that look like a variable's but are none, with that variable's name."""
    known = set(known)
    found = {}
    for name in names:
        if name not in known and len(name) >= 5 and name.isupper():
            for close in difflib.get_close_matches(name, known, n=1, cutoff=0.87):
                found[name] = close
    return found


def help_text(cls: type) -> str:
    """The variables by group, in lines of the terminal's width."""
    declared = variables(cls)
    indent = max(len(known.name) for known in declared) + 4
    width = shutil.get_terminal_size().columns - 2
    blocks = ["environment variables:"]
    for group in GROUPS:
        lines = [
            textwrap.fill(
                f"{description(known)} [{_kind(known)}]",
                width=max(width, indent + 20),
                initial_indent=f"  {known.name}".ljust(indent),
                subsequent_indent=" " * indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
            for known in declared
            if known.group == group
        ]
        if lines:
            blocks.append("\n".join([f" {group}:", *lines]))
    return "\n\n".join(blocks)


def _kind(known: Variable) -> str:
    """Type and default, as help tells them."""
    bare = _bare(known.annotation)
    if get_origin(bare) in (Union, UnionType):
        bare = _bare(get_args(bare)[0])
    kind = _KINDS.get(get_args(bare)[0] if known.is_list else bare, "text")
    kind = "whole numbers with commas" if known.is_list else kind
    default = text_of(known.default)
    told = f"default {default}" if default else "unset"
    return told if known.choices else f"{kind}; {told}"


def markdown_tables(scripts: Mapping[str, type]) -> str:
    """The tables of docs/settings.md: variables that `scripts` share, then those that differ.

    scripts: settings classes by the name of their script.
    """
    declared = [{known.name: known for known in variables(cls)} for cls in scripts.values()]
    shared, differing = [], []
    for name in dict.fromkeys(name for mine in declared for name in mine):
        defaults = [_default(mine, name) for mine in declared]
        meaning = description(next(mine[name] for mine in declared if name in mine))
        if len(set(defaults)) == 1:
            shared.append((f"`{name}`", defaults[0], meaning))
        else:
            differing.append((f"`{name}`", *defaults, meaning))
    tables = [markdown(("variable", "default", "meaning"), shared)]
    if differing:
        names = (f"`{name}`" for name in scripts)
        tables.append(markdown(("variable", *names, "meaning"), differing))
    return "\n\n".join(tables)


def _default(declared: Mapping[str, Variable], name: str) -> str:
    if name not in declared:
        return "-"
    text = text_of(declared[name].default)
    return f"`{text}`" if text else ""


def description(known: Variable) -> str:
    """Help, choices and the plug-in that a variable belongs to, in one line."""
    choices = f"; one of {', '.join(known.choices)}" if known.choices else ""
    owner = f" (with {known.owner[0]}={known.owner[1]})" if known.owner else ""
    return f"{known.help}{choices}{owner}"


def main() -> None:
    """Print the tables of docs/settings.md: `python -m longctx.config narrativeqa_eval ...`."""
    parser = argparse.ArgumentParser(prog="python -m longctx.config", description=main.__doc__)
    parser.add_argument("scripts", nargs="+", metavar="SCRIPT")
    names = parser.parse_args().scripts
    print(markdown_tables({name: importlib.import_module(name).TASK.settings for name in names}))


if __name__ == "__main__":
    main()
