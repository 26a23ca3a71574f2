"""Whether the Hugging Face hub can be reached, found out once and fast."""

import socket
import urllib.request
from functools import cache
from urllib.parse import urlsplit

import huggingface_hub.constants

from longctx.console import notice

_TIMEOUT_S = 3


@cache
def go_offline_if_unreachable() -> None:
    """Without a route to the hub, use its cache alone; otherwise each file is retried for long."""
    constants = huggingface_hub.constants
    if constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_TIMEOUT_S).close()
    except OSError:
        notice(f"{address.hostname} cannot be reached; only what is in the cache can be had")
        constants.HF_HUB_OFFLINE = True
        try:
            import datasets.config
        except ImportError:
            return
        datasets.config.HF_HUB_OFFLINE = True
