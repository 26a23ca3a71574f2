"""How a process was started."""

from collections.abc import Mapping
from dataclasses import dataclass


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
