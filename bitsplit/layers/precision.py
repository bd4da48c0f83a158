"""Convolutions on a GPU computed as on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside it, or in a function that it decorates, cuDNN convolves in float32 and gives the same bits every time.

    What torch does on its own there rounds inputs to ten bits of mantissa (TF32), too few for the products of 8-bit
    codes with their scales, and may choose algorithms that add in any order.
    """
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False):
        yield
