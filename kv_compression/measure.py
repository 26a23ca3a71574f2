"""Device time and peak memory, measured without disturbing what is measured."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


def synchronize(devices: Iterable[torch.device]) -> None:
    """Wait until every CUDA device among `devices` has done its work."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


class Stopwatch:
    """Adds up the time of pieces of work without synchronising: by CUDA events or the clock."""

    def __init__(self) -> None:
        self._clock_ms = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Count what the block does on `device`."""
        if device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record(stream)
            yield
            end.record(stream)
            self._events.append((start, end))
        else:
            began = time.perf_counter()
            yield
            self._clock_ms += (time.perf_counter() - began) * 1e3

    def total_ms(self) -> float:
        """Time of all blocks so far; the devices must have finished them."""
        return self._clock_ms + sum(start.elapsed_time(end) for start, end in self._events)


class PeakMemory:
    """Peak bytes of the CUDA caching allocator in one request, summed over `devices`."""

    def __init__(self, devices: Iterable[torch.device]):
        self.devices = [device for device in devices if device.type == "cuda"]
        self._most_reserved: int | None = None
        self._has_begun = False

    def restart(self) -> None:
        """Begin a phase, the first one with the request itself: forget the peak in tensors."""
        if self._has_begun:
            self._most_reserved = self.reserved()
        self._has_begun = True
        for device in self.devices:
            torch.cuda.reset_peak_memory_stats(device)

    def allocated(self) -> int | None:
        """Bytes in tensors at the phase's peak; None without a GPU."""
        if not self.devices:
            return None
        return sum(torch.cuda.max_memory_allocated(device) for device in self.devices)

    def reserved(self) -> int | None:
        """Bytes held by the allocator at the request's peak; None without a GPU."""
        if not self.devices:
            return None
        now = sum(torch.cuda.max_memory_reserved(device) for device in self.devices)
        return max(now, self._most_reserved or 0)
