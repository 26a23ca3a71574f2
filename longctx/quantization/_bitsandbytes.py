"""What bnb8 and bnb4 share: the package bitsandbytes, which is optional."""

import importlib.util
import logging


def check() -> None:
    """Raises ValueError when bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("needs the package bitsandbytes: pip install bitsandbytes")


def quiet() -> None:
    """bitsandbytes warns at every matrix product that its 8-bit kernel casts bfloat16."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
