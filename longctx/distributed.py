"""The processes of one run: one, or several that torchrun started, on one machine or more."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from longctx.errors import CannotRunError
from longctx.launch import Launch

T = TypeVar("T")

# A process that dies is torchrun's to notice; a slow one is waited for.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """Rank `rank` of `count` processes.

    shards: each process takes a share of the samples; else all work on every request together,
        each with a part of the model.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    shards: bool = True
    _group: Any = None

    @classmethod
    def join(cls, launch: Launch, shards: bool) -> "Processes":
        """Meet the other processes. Raises CannotRunError where a machine has too few GPUs."""
        if launch.count == 1:
            return cls()
        on_gpu = torch.cuda.is_available()
        if on_gpu and launch.local_rank >= torch.cuda.device_count():
            raise CannotRunError(
                f"torchrun started process {launch.local_rank} on a machine with "
                f"{torch.cuda.device_count()} GPUs: --nproc_per_node is at most that"
            )
        if on_gpu:
            torch.cuda.set_device(launch.local_rank)
        distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", None, _PATIENCE)
        group = distributed.new_group(timeout=_PATIENCE, backend="gloo")
        return cls(launch.rank, launch.count, launch.local_rank, shards, group)

    @property
    def is_first(self) -> bool:
        """Whether this process writes the results and talks to the terminal."""
        return self.rank == 0

    @property
    def parts(self) -> int:
        """How many shares the samples are dealt into."""
        return self.count if self.shards else 1

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share: dealt out in turn, so that long and short ones are mixed."""
        return items[self.rank :: self.count] if self.shards else items

    def of_first(self, value: T) -> T:
        """Rank 0's value."""
        if self.count == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def gathered(self, value: T) -> list[T]:
        """The values of all processes that have a share of their own, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value, group=self._group)
        return values if self.shards else values[:1]

    def leave(self) -> None:
        """Part from the others once all are here."""
        if self.count > 1:
            distributed.barrier(group=self._group)
            distributed.destroy_process_group()
