"""What settings there are: in `--help`, and in the tables of docs/settings.md."""

import shutil
import textwrap
from collections.abc import Mapping
from types import UnionType
from typing import Union, get_args, get_origin

from longctx.config import GROUPS, Variable, bare, text_of, variables
from longctx.tables import markdown

_KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}


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
    annotation = bare(known.annotation)
    if get_origin(annotation) in (Union, UnionType):
        annotation = bare(get_args(annotation)[0])
    kind = "whole numbers with commas" if known.is_list else _KINDS.get(annotation, "text")
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
