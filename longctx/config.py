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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from kv_compression import methods
from longctx import console, quantization, redaction
from longctx.console import notice
from longctx.tables import markdown

Choices = tuple[str, ...] | Callable[[], tuple[str, ...]]
AnySettings = TypeVar("AnySettings")


class CannotRunError(ValueError):
    """What keeps a run from starting; the message is one line for the person at the terminal."""


class SettingError(CannotRunError):
    """A setting that cannot be used; what has the shape of a secret is masked.

    example: lines of what can be, shown below the error.
    """

    def __init__(self, variable: str, value: object, problem: str, example: str = ""):
        super().__init__(redaction.masked(f"{variable}={value}: {problem}"))
        self.example = example


def variable(
    default: Any,
    help: str,
    *,
    choices: Choices | None = None,
    unused_when: tuple[str, ...] | None = None,
    changes_results: bool = True,
) -> Any:
    """A field that an environment variable sets.

    choices: the values allowed, or a function that lists them.
    unused_when: (other variable, value, ...): with any of these this one has no effect.
    changes_results: whether two runs that differ in it may differ in their figures.
    """
    metadata = {
        "help": help,
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
    choices: tuple[str, ...] | None
    unused_when: tuple[str, ...] | None
    changes_results: bool
    owner: tuple[str, str] | None
    """(variable, value) of the KV method or quantization that it belongs to."""

    def parse(self, text: str) -> Any:
        """The value that `text` stands for. Raises SettingError."""
        is_list = get_origin(_bare(self.annotation)) is tuple
        if not text.strip() and not is_list:
            raise SettingError(self.name, text, "is empty; leave it unset for its default")
        value: Any = text.strip()
        if is_list:
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
            raise SettingError(self.name, text, problem + (example if is_list else "")) from None


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def text_of(value: Any) -> str:
    """A value as one would write it in the shell."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def _declared(cls: type, owner: tuple[str, str] | None) -> Iterator[Variable]:
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
            choices=choices() if callable(choices) else choices,
            unused_when=meta.get("unused_when"),
            changes_results=meta.get("changes_results", True),
            owner=owner,
        )


def variables(cls: type) -> list[Variable]:
    """Every variable of a script: its settings, then those of the plug-ins that it can choose."""
    found = list(_declared(cls, owner=None))
    own = {known.name for known in found}
    for name in methods.names() if "KV_MODE" in own else ():
        found += _declared(methods.method_class(name), owner=("KV_MODE", name))
    for name in quantization.names() if "QUANT_MODE" in own else ():
        found += _declared(quantization.quantization_class(name), owner=("QUANT_MODE", name))
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
    """Settings from `environ`, by default the process's. Raises SettingError.

    Prints a notice for a variable that looks misspelt or has no effect.
    """
    environ = os.environ if environ is None else environ
    declared = variables(cls)
    given = {known.name: environ[known.name] for known in declared if known.name in environ}
    redaction.remember(os.environ, environ)
    for name, value in given.items():
        if redaction.masked(value) != value:
            raise SettingError(name, value, "holds a password or token, which results would show")
    values = {
        known.name: known.parse(given[known.name]) if known.name in given else known.default
        for known in declared
    }
    _warn_of_misspellings(environ, [known.name for known in declared])
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


def without_settings(cls: type) -> dict[str, str]:
    """The process's environment for a command that is told its settings in another way.

    Settings of `cls` that can change a figure are left out, with a notice for each.
    """
    redaction.remember(os.environ)
    left_out = {known.name for known in variables(cls) if known.changes_results}
    for name in sorted(left_out & set(os.environ)):
        notice(f"{name}={os.environ[name]} of the environment is not passed on")
    return {name: value for name, value in os.environ.items() if name not in left_out}


def tell_libraries(name: str, value: str) -> None:
    """Set a variable that only a library reads."""
    os.environ[name] = value


def _warn_of_misspellings(environ: Mapping[str, str], known: list[str]) -> None:
    for name in environ:
        if name in known or len(name) < 5 or not name.isupper():
            continue
        if close := difflib.get_close_matches(name, known, n=1, cutoff=0.87):
            notice(f"{name} is not a setting; did you mean {close[0]}?")


def help_text(cls: type) -> str:
    """The table of variables that `--help` prints."""
    rows = [
        (known.name, text_of(known.default) or "(unset)", description(known))
        for known in variables(cls)
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = ["environment variables (name, default, meaning):", ""]
    for name, default, meaning in rows:
        lines.append(f"  {name:<{widths[0]}}  {default:<{widths[1]}}  {meaning}")
    return "\n".join(lines)


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
