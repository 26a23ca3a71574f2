"""Weight quantizations, one file each; the file's name is the value of QUANT_MODE that chooses it.

A file defines `Quantization`, a frozen dataclass whose fields are its parameters, with the metadata
that `longctx.config` reads, `check()`, which raises ValueError when it cannot be had here, and
`config()`, which says to transformers what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from kv_compression import plugins

if TYPE_CHECKING:
    from transformers.utils.quantization_config import QuantizationConfigMixin


class Quantization(Protocol):
    """What a quantization file's `Quantization` provides."""

    __dataclass_fields__: ClassVar[dict[str, Any]]  # a dataclass: its fields are its parameters

    def check(self) -> None:
        """Raises ValueError, with the way out, when it cannot be had here."""
        ...

    def config(self) -> QuantizationConfigMixin | None:
        """The quantization config for `from_pretrained`, or None."""
        ...


def names() -> tuple[str, ...]:
    """Every quantization's name."""
    return plugins.names(__name__)


def quantization_class(name: str) -> type[Quantization]:
    """The `Quantization` class of the file `name`. Raises ValueError for an unknown name."""
    return plugins.load(__name__, name).Quantization
