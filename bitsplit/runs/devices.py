"""The device of a run: the one asked for, or with "auto" a GPU, of several each worker its own."""

import multiprocessing
import re

import torch

from bitsplit.errors import InputError


def named_device(name: object) -> str:
    """What `device=` names, as torch knows it; InputError where it is not available."""
    if name == "auto":
        return device_of_process(multiprocessing.current_process().name, torch.cuda.device_count())
    if not isinstance(name, str):
        raise InputError(f"device must be auto, cpu, cuda or the like; got {name!r}")
    try:
        empty = torch.empty(0, device=name)
        empty.numpy(force=True)  # which the device "meta" cannot give
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(f"device={name} is not available here; use device=cpu or device=auto") from error
    return "cpu" if empty.is_cpu else name


def device_of_process(process: str, gpus: int) -> str:
    """The device of a process by its name: joblib numbers its workers, which so share the GPUs evenly.

    >>> device_of_process("MainProcess", gpus=0), device_of_process("LokyProcess-3", gpus=1)
    ('cpu', 'cuda')
    >>> [device_of_process(name, gpus=2) for name in ("MainProcess", "LokyProcess-1", "LokyProcess-2", "LokyProcess-3")]
    ['cuda:0', 'cuda:0', 'cuda:1', 'cuda:0']
    """
    if gpus < 2:
        return "cuda" if gpus else "cpu"
    number = re.search(r"\d+$", process)
    return f"cuda:{(int(number.group()) - 1) % gpus if number else 0}"
