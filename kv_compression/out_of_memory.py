"""Out of memory, by all the names that libraries give it."""

import errno
import re
from collections.abc import Iterator

# Triton's "out of resource: shared memory" is none of them: there a kernel asks for more than a
# multiprocessor has, whatever else is in memory.
_NAMES = re.compile(
    r"out[ _]of[ _](?:device[ _]|host[ _])?memory"  # CUDA, HIP, XPU, MPS, oneAPI
    r"|OutOfMemory|MemoryAllocation"  # hipErrorOutOfMemory, cudaErrorMemoryAllocation
    r"|UR_RESULT_ERROR_OUT_OF_RESOURCES"
    r"|ALLOC(?:ATION)?_FAILED"  # cuBLAS, cuDNN, cuSOLVER, cuSPARSE, hipBLAS
    r"|miopenStatusAllocFailed|rocblas_status_memory_error"
    r"|can(?:'t|not) allocate memory|not enough memory|bad_alloc",  # a CPU's
    re.IGNORECASE,
)


def cause(error: BaseException) -> BaseException | None:
    """What ran out of memory: `error` or what it came from; None where nothing did.

    A device that is lost is lost, whatever came before.
    """
    import torch

    if isinstance(error, torch.AcceleratorError) and not _is_named(error):
        return None
    return next(filter(_is_named, _chain(error)), None)


def _is_named(error: BaseException) -> bool:
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    # Of other kinds of error, a text may be a model's or a data set's.
    return isinstance(error, RuntimeError) and _NAMES.search(str(error)) is not None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that led to it; `raise ... from None` says that those before did not."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        before = None if following.__suppress_context__ else following.__context__
        following = following.__cause__ or before
