"""Arithmetic in the precision of the network: convolutions on a GPU computed as on a CPU, and no autocast."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Inside it, or in a function that it decorates, cuDNN convolves in float32 and gives the same bits every time, and
    a surrounding autocast does nothing.

    What torch does on its own there rounds inputs to ten bits of mantissa (TF32), too few for the products of 8-bit
    codes with their scales, and may choose algorithms that add in any order.
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    with (
        torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False),
        contextlib.ExitStack() as stack,
    ):
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
