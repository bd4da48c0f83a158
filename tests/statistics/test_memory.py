"""Freed memory stays for the next feature map where it should, and goes back to the system behind.

In a process of its own: a heap that has been used has holes, in which tensors of any size find a place.
"""

import multiprocessing
import platform
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from bitsplit.statistics.memory import freed_memory_kept

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
IMAGES = torch.ones(12, 64, 112, 112)  # more than what malloc keeps in any case
PAGES = IMAGES.nbytes // resource.getpagesize()


def forward() -> int:
    """How many pages came from the system for two feature maps as large as `IMAGES`."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    IMAGES.relu().add(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.fixture
def fresh_process():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_feature_maps_take_each_others_place_inside_and_go_back_behind(fresh_process):
    fresh_process.submit(keep_and_return).result()


def keep_and_return():
    before = resident()
    with freed_memory_kept():
        faults = [forward() for _ in range(30)]
        assert faults[0] > PAGES and max(faults[-3:]) < PAGES / 10
        assert resident() - before > PAGES
    assert resident() - before < PAGES
    assert forward() > PAGES / 2


def test_it_ends_where_a_forward_fails(fresh_process):
    fresh_process.submit(fail_inside).result()


def fail_inside():
    @freed_memory_kept()
    def fail():
        forward()
        raise ValueError

    before = resident()
    with pytest.raises(ValueError):
        fail()
    assert resident() - before < PAGES
    torch.ones(5 * IMAGES.numel())  # finds no place in the heap that was left
    assert resident() - before < PAGES
