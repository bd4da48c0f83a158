"""Freed memory goes back to the system, where malloc is glibc's: else it stays in the heap, between what is in use."""

import contextlib
import ctypes

LARGE, LARGEST = 2**20, 2**25  # bytes; the second is where malloc itself ends up after tensors of that size
_M_MMAP_THRESHOLD = -3  # of malloc.h


def return_when_freed(size: int) -> None:
    """From now on blocks of so many bytes and more go back as soon as they are freed, which costs time.

    In many threads' heaps two to three times as much would stay as is in use.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, size)


def return_freed() -> None:
    """All that has been freed so far goes back."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
