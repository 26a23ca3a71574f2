"""Programmatic dependent launch: a kernel is launched while the one before it still runs.

On Hopper and later GPUs a kernel's programs start, and read what no earlier kernel writes, before
the last programs of the kernel before have ended. Every kernel so launched must call
`after_previous` before it reads or writes anything else: then all kernels before it have ended.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl


@cache
def is_possible(device: torch.device) -> bool:
    """Whether the device can."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def options(device: torch.device) -> dict[str, Any]:
    """Launch options and the kernel's argument PDL."""
    return {"PDL": True, "launch_pdl": True} if is_possible(device) else {"PDL": False}


@triton.jit
def after_previous(PDL: tl.constexpr):
    """Wait until the kernel before has ended."""
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def start_next(PDL: tl.constexpr):
    """Let the next kernel's programs start; they wait for this one's end."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
