"""What bnb8 and bnb4 share: the package bitsandbytes, which is optional."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


class Bitsandbytes:
    """A quantization whose `options` are what transformers' BitsAndBytesConfig takes."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments of BitsAndBytesConfig."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises ValueError when bitsandbytes is not installed."""
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError("needs the package bitsandbytes: pip install bitsandbytes")

    def config(self) -> BitsAndBytesConfig:
        """What `from_pretrained` takes."""
        from transformers import BitsAndBytesConfig

        # It warns at every matrix product that its 8-bit kernel casts bfloat16.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        return BitsAndBytesConfig(**self.options())
