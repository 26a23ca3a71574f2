"""One file is one choice: a package's modules are its options, listed nowhere else."""

import importlib
import pkgutil
from functools import cache
from types import ModuleType


@cache
def names(package: str) -> tuple[str, ...]:
    """Names of the modules inside `package`, sorted, without importing any of them.

    A name that begins with an underscore is what the options share, not an option.
    """
    modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return tuple(sorted(info.name for info in modules if not info.name.startswith("_")))


def load(package: str, name: str) -> ModuleType:
    """Import `package.name`. Raises ValueError, with the choices, when there is no such module."""
    if name not in names(package):
        raise ValueError(f"{name!r} is none of {', '.join(names(package))}")
    return importlib.import_module(f"{package}.{name}")
