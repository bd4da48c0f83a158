"""Arithmetic in the precision of the network: on a GPU as on a CPU, whatever the caller has set torch to."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Inside it, or in a function that it decorates, float32 is multiplied and convolved as such, cuDNN gives the same
    bits every time, a surrounding autocast does nothing, and tensors are `ordinary_tensors`.

    What torch does on its own there rounds inputs to ten bits of mantissa (TF32), too few for the products of 8-bit
    codes with their scales, and may choose algorithms that add in any order; what the caller may have asked for
    (`torch.set_float32_matmul_precision`, `torch.backends.fp32_precision`) leaves as few or fewer.
    """
    cudnn = torch.backends.cudnn
    with _float32_products(), ordinary_tensors(), contextlib.ExitStack() as stack:
        for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
            stack.enter_context(torch.autocast(device, enabled=False))
        for name, value in (("deterministic", True), ("benchmark", False)):
            stack.callback(setattr, cudnn, name, getattr(cudnn, name))
            setattr(cudnn, name, value)
        yield


@contextlib.contextmanager
def _float32_products() -> Iterator[None]:
    """By both of torch's interfaces: each refuses to read what was set through the other in a way that it cannot say,
    so that either alone would fail here, or inside for whoever asks the other."""
    backends = torch.backends
    parts = ()
    if hasattr(backends, "fp32_precision"):  # since torch 2.9
        cuda, cudnn, mkldnn = backends.cuda, backends.cudnn, backends.mkldnn
        parts = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    with contextlib.ExitStack() as stack:
        for part in parts:  # restored last: the older interface sets them too
            stack.callback(setattr, part, "fp32_precision", part.fp32_precision)
        with contextlib.suppress(RuntimeError):
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        with contextlib.suppress(RuntimeError):
            stack.callback(setattr, backends.cudnn, "allow_tf32", backends.cudnn.allow_tf32)
            backends.cudnn.allow_tf32 = False
        for part in parts:
            part.fp32_precision = "ieee"
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
