"""Every setting, declared once: that one declaration parses, validates, helps and documents.

A setting is a dataclass field made by `variable`, in `longctx.settings` or in a script; its
environment variable is the field's name in capitals. KV methods, budgets and quantizations declare
their own parameters, in their own files, as fields with the same metadata. `os.environ` is read in
no other place.
"""

import argparse
import dataclasses
import difflib
import importlib
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from kv_compression import budgets, methods
from longctx import console, quantization, redaction
from longctx.console import notice
from longctx.errors import SettingError, raise_any
from longctx.launch import Launch

Choices = tuple[str, ...] | Callable[[], tuple[str, ...]]
AnySettings = TypeVar("AnySettings")

GROUPS = ("what is run", "attention", "KV cache", "weights", "speed", "runs")
"""Headings of `--help`, in its order."""


def variable(
    default: Any,
    help: str,
    *,
    group: str = "what is run",
    choices: Choices | None = None,
    unused_when: tuple[str, ...] | None = None,
    of: str | None = None,
    changes_results: bool = True,
) -> Any:
    """A field that an environment variable sets.

    group: one of GROUPS.
    choices: the values allowed, or a function that lists them.
    unused_when: (other variable, value, ...): with any of these this one has no effect.
    of: what must be made anew in a process when it changes: "samples", "model" or, with "request",
        neither; None stands for both.
    changes_results: whether two runs that differ in it may differ in their figures.
    """
    metadata = {
        "help": help,
        "group": group,
        "choices": choices,
        "unused_when": unused_when,
        "of": of,
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

    def unused_beside(self, values: Mapping[str, Any]) -> str | None:
        """The setting, as NAME=value, that leaves this one without effect; None where none does."""
        if self.unused_when is not None:
            name, *choices = self.unused_when
            if values[name] in choices:
                return f"{name}={values[name]}"
        if self.owner is not None and values[self.owner[0]] != self.owner[1]:
            return f"{self.owner[0]}={values[self.owner[0]]}"
        return None

    @property
    def is_list(self) -> bool:
        """Whether its value is several, with commas between."""
        return get_origin(bare(self.annotation)) is tuple

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
        for one in value if self.is_list else [value]:
            if self.choices is not None and one not in self.choices:
                close = difflib.get_close_matches(one.lower(), self.choices, n=1, cutoff=0.7)
                hint = f" (did you mean {close[0]}?)" if close else ""
                problem = f"choose one of {', '.join(self.choices)}{hint}"
                raise SettingError(self.name, one, problem)
        try:
            return TypeAdapter(self.annotation).validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"].replace("Input should", "should")
            example = f"; for example {self.name}={text_of(self.default)}"
            raise SettingError(
                self.name, text, problem + (example if self.is_list else "")
            ) from None


def bare(annotation: Any) -> Any:
    """The type without what limits its values."""
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


# What each of these chooses has variables of its own.
_PLUGINS: Mapping[str, tuple[Callable[[], Iterable[str]], Callable[[str], type]]] = {
    "KV_MODE": (methods.names, methods.method_class),
    "KV_BUDGET": (budgets.names, budgets.budget_class),
    "QUANT_MODE": (quantization.names, quantization.quantization_class),
}


def variables(cls: type) -> list[Variable]:
    """Every variable of a script: its settings, then those of the plug-ins that it can choose."""
    found = list(_declared(cls))
    by_name = {known.name: known for known in found}
    for variable, (choices, class_of) in _PLUGINS.items():
        if chooser := by_name.get(variable):
            for name in choices():
                mine = _declared(class_of(name), (variable, name), chooser.group)
                # What chooses may itself be without effect.
                found += [
                    dataclasses.replace(each, unused_when=chooser.unused_when) for each in mine
                ]
    return found


@dataclass(frozen=True)
class Environment:
    """What the environment says besides the settings.

    plugin_values: of each variable that belongs to a KV method or a quantization.
    is_set: names of the variables that are set at all.
    """

    plugin_values: Mapping[str, Any]
    is_set: frozenset[str]
    declared: list[Variable]
    launch: Launch = Launch()

    def values(self, settings: Any) -> dict[str, Any]:
        """The value of each variable: those of `settings`, then of the plug-ins."""
        return {
            known.name: getattr(settings, known.field)
            if known.owner is None
            else self.plugin_values[known.name]
            for known in self.declared
        }

    def parameters(self, variable: str, value: str) -> dict[str, Any]:
        """Keyword arguments for the plug-in that `variable` = `value` chooses."""
        mine = [known for known in self.declared if known.owner == (variable, value)]
        return {known.field: self.plugin_values[known.name] for known in mine}

    def method(self, name: str) -> methods.PruningMethod | None:
        """The KV method `name`, with its parameters; None for "none"."""
        if name == "none":
            return None
        return methods.method_class(name)(**self.parameters("KV_MODE", name))

    def budget(self, name: str) -> budgets.Budget:
        """The KV budget `name`, with its parameters."""
        return budgets.budget_class(name)(**self.parameters("KV_BUDGET", name))

    def quantization(self, name: str) -> quantization.Quantization:
        """The quantization `name`, with its parameters."""
        return quantization.quantization_class(name)(**self.parameters("QUANT_MODE", name))

    def command(self, settings: Any, script: str) -> str:
        """The shell line that runs `script` again with `settings`."""
        changed = [
            f"{name}={shlex.quote(text_of(value))}"
            for name, value in self.values(settings).items()
            if name in self.is_set
        ]
        return " ".join([*changed, "python", script])

    def fingerprint_values(self, settings: Any) -> dict[str, Any]:
        """Values of the variables that can change a figure."""
        values = self.values(settings)
        return {known.name: values[known.name] for known in self.declared if known.changes_results}


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
    for name, close in misspelt(environ, [known.name for known in declared]).items():
        notice(f"{name} is not a setting; did you mean {close}?")
    values = _parsed(declared, given)
    for known in declared:
        if known.name in given and (why := known.unused_beside(values)):
            notice(f"{known.name} has no effect with {why}")
    own = {known.field: values.pop(known.name) for known in declared if known.owner is None}
    return cls(**own), Environment(values, frozenset(given), declared, Launch.of(environ))


def _parsed(declared: Iterable[Variable], texts: Mapping[str, str]) -> dict[str, Any]:
    """Values by variable, the default where `texts` has none. Raises as `read` does."""
    values, problems = {}, []
    for known in declared:
        try:
            is_given = known.name in texts
            values[known.name] = known.parse(texts[known.name]) if is_given else known.default
        except SettingError as error:
            problems.append(error)
    raise_any(problems)
    return values


def without_unused(
    cls: type, changes: Mapping[str, str], environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """`changes` of an environment, by default the process's, less those that have no effect in it.

    Raises as `read` does.
    """
    declared = variables(cls)
    environ = os.environ if environ is None else environ
    values = _parsed(declared, {**environ, **changes})
    unused = {known.name for known in declared if known.unused_beside(values)}
    return {name: value for name, value in changes.items() if name not in unused}


def environment_with(changes: Mapping[str, str]) -> dict[str, str]:
    """The process's environment with `changes`."""
    return {**os.environ, **changes}


def tell_libraries(name: str, value: str) -> None:
    """Set a variable that only a library reads."""
    os.environ[name] = value


def set_if_unset(name: str, value: str) -> None:
    """Set a variable for what this process does from here on, unless the environment has it."""
    os.environ.setdefault(name, value)


def misspelt(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Names that look like a variable's but are none, with that variable's name."""
    known = set(known)
    found = {}
    for name in names:
        if name not in known and len(name) >= 5 and name.isupper():
            for close in difflib.get_close_matches(name, known, n=1, cutoff=0.87):
                found[name] = close
    return found


def main() -> None:
    """Print the tables of docs/settings.md: `python -m longctx.config *_eval.py`."""
    from longctx.settings_help import markdown_tables

    parser = argparse.ArgumentParser(prog="python -m longctx.config", description=main.__doc__)
    parser.add_argument("scripts", nargs="+", metavar="SCRIPT")
    names = [name.removesuffix(".py") for name in parser.parse_args().scripts]
    print(markdown_tables({name: importlib.import_module(name).TASK.settings for name in names}))


if __name__ == "__main__":
    main()
