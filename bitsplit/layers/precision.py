"""Arithmetic in the precision of the network: on a GPU as on a CPU, whatever the caller has set torch to."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Inside it, or in a function that it decorates, float32 is multiplied and convolved as such, cuDNN gives the same
    bits every time, a surrounding autocast does nothing, and tensors are `ordinary_tensors`.

    What torch does on its own there rounds inputs to ten bits of mantissa (TF32), too few for the products of 8-bit
    codes with their scales, and may choose algorithms that add in any order; what the caller may have asked for in
    matrix products (`torch.set_float32_matmul_precision`) leaves as few or fewer.
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    asked = torch.get_float32_matmul_precision()
    with (
        torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False),
        ordinary_tensors(),
        contextlib.ExitStack() as stack,
    ):
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.callback(torch.set_float32_matmul_precision, asked)
        torch.set_float32_matmul_precision("highest")
        yield


@contextlib.contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Inside it, or in a function that it decorates, tensors are made that can be used anywhere, although the caller
    may be in `torch.inference_mode`, whose tensors no training and no change in place may touch elsewhere."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
