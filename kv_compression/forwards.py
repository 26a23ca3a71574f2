"""Let modules do something else for a while."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def replaced_forwards(
    pairs: Iterable[tuple[torch.nn.Module, Callable[..., Any]]],
) -> Iterator[None]:
    """In the block each module's forward is the function beside it.

    Where something else had replaced a forward, that is what comes back.
    """
    pairs = list(pairs)
    before = [module.__dict__.get("forward") for module, _ in pairs]
    for module, forward in pairs:
        module.forward = forward
    try:
        yield
    finally:
        for (module, _), replaced in zip(pairs, before, strict=True):
            del module.forward
            if replaced is not None:
                module.forward = replaced
