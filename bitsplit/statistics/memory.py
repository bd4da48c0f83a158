"""What becomes of freed memory, where malloc is glibc's: it stays in the heap, or goes back to the system."""

import contextlib
import ctypes
from collections.abc import Iterator

LARGE, LARGEST = 2**20, 2**25  # bytes; the second is where malloc itself ends up after tensors of that size
_FEATURE_MAP = 2**28  # bytes of the largest that are kept: 64 images of ResNet's first layer at 224×224 take 2^27.6
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def return_when_freed(size: int) -> None:
    """From now on blocks of so many bytes and more go back as soon as they are freed, which costs time.

    In many threads' heaps two to three times as much would stay as is in use.
    """
    _set_malloc(_M_MMAP_THRESHOLD, size)


def return_freed() -> None:
    """All that has been freed so far goes back."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside it, or in a function that it decorates, one feature map is put where another was.

    Otherwise each page of it would come anew from the system, which takes a quarter of a forward's time at 224×224.
    Larger blocks, Gram matrices say, go back at once all the same. Not to be nested: where an inner one ends, they all
    do.
    """
    _set_malloc(_M_TRIM_THRESHOLD, 2**31 - 1)
    return_when_freed(_FEATURE_MAP)
    try:
        yield
    finally:
        return_when_freed(LARGEST)
        _set_malloc(_M_TRIM_THRESHOLD, 2 * LARGEST)
        return_freed()


def _set_malloc(parameter: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(parameter, value)
