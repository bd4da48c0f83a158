"""Threads of the compiled loops, which are numba's, beside torch's."""

import functools
import os

import numba
import torch

from bitsplit.errors import InputError


@functools.cache
def _start_threads() -> int:
    """Starts the threads of the compiled loops, once; returns the process that they are in. Torch keeps its number of
    threads, which numba would set to its own."""
    threads = torch.get_num_threads()
    numba.get_num_threads()
    torch.set_num_threads(threads)
    return os.getpid()


def may_loop_in_threads() -> bool:
    """Whether this process may run compiled loops: GNU OpenMP ends one that was forked from one which has them."""
    return _start_threads() == os.getpid()


def check_process() -> None:
    """InputError where this process may not run compiled loops."""
    if not may_loop_in_threads():
        raise InputError(
            "this process was forked from one that has quantized or run a quantized network, and GNU OpenMP would end "
            "it: start it by multiprocessing's method 'spawn'"
        )
