"""Out of memory is known by any of its names, and by nothing else."""

import errno

import pytest
import torch

from kv_compression import out_of_memory
from kv_compression.decode_graph import CannotBeCapturedError, DecodeGraphs, step
from tests.models import tiny


class OutOfResources(Exception):
    """As Triton says that a kernel does not fit."""


NAMED = [
    torch.OutOfMemoryError("Tried to allocate 64.00 GiB"),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might", 2),
    *map(
        RuntimeError,
        [
            "CUDA out of memory. Tried to allocate 20.00 MiB",
            "CUDA error: out of memory",
            "Triton Error [CUDA]: out of memory",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
            "HIP out of memory. Tried to allocate 2 GiB",
            "hipErrorOutOfMemory",
            "HIPBLAS_STATUS_ALLOC_FAILED",
            "XPU out of memory. Tried to allocate 2 GiB",
            "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
            "level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)",
            "MPS backend out of memory (MPS allocated: 8.00 GB)",
            "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 99 bytes",
            "DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes.",
            "unable to mmap 99 bytes from file <x>: Cannot allocate memory (12)",
            "std::bad_alloc",
        ],
    ),
]
OTHERS = [
    OutOfResources("out of resource: shared memory, Required: 262144, Hardware limit: 232448"),
    RuntimeError("Triton: out of resource: shared memory, Required: 262144"),
    RuntimeError("CUDA error: too many resources requested for launch"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"),
    torch.AcceleratorError("CUDA error: device-side assert triggered", 710),
    ValueError("a document about a program that ran out of memory"),
    OSError(errno.ENOSPC, "No space left on device"),
    FloatingPointError("the model's logits are NaN"),
]


@pytest.mark.parametrize("error", NAMED, ids=str)
def test_each_of_its_names(error):
    assert out_of_memory.cause(error) is error


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_nothing_else(error):
    assert out_of_memory.cause(error) is None


def raised(error, before, *, is_cause=False, is_hidden=False):
    """`error` as it is raised while `before` is handled."""
    error.__context__ = before
    error.__cause__ = before if is_cause else None
    error.__suppress_context__ = is_cause or is_hidden
    return error


@pytest.mark.parametrize("is_cause", [True, False])
def test_what_another_error_came_from(is_cause):
    before = RuntimeError("CUDA out of memory")
    error = raised(ValueError("the graph cannot be made"), before, is_cause=is_cause)
    assert out_of_memory.cause(error) is before
    outer = raised(KeyError("x"), error, is_cause=is_cause)
    assert out_of_memory.cause(outer) is before


def test_what_an_error_did_not_come_from():
    before = RuntimeError("CUDA out of memory")
    assert out_of_memory.cause(raised(ValueError("x"), before, is_hidden=True)) is None
    # A device that is lost does nothing more, whatever came before.
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700)
    assert out_of_memory.cause(raised(lost, before)) is None
    loop = ValueError("x")
    loop.__cause__ = KeyError("y")
    loop.__cause__.__cause__ = loop
    assert out_of_memory.cause(loop) is None


@pytest.mark.parametrize(
    ("said", "kind"),
    [("CUBLAS_STATUS_ALLOC_FAILED", RuntimeError), ("not permitted", CannotBeCapturedError)],
)
def test_memory_that_runs_out_while_a_step_is_captured_is_no_obstacle_to_capturing(
    monkeypatch, said, kind
):
    class Step:
        def __init__(self, *_):
            pass

        def begin(self, *_):
            pass

        def capture(self, pool):
            raise RuntimeError(said)

    monkeypatch.setattr(step, "DecodeStep", Step)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", tuple)
    with pytest.raises(kind, match=said) as caught:
        DecodeGraphs(tiny()).capture([], torch.zeros(1), torch.zeros(1, 1))
    assert caught.type is kind
