"""What networks are for: each task loads a network and its data, and says what a network's predictions are worth."""

import importlib

import torch

from bitsplit.errors import InputError

TASKS = {"classification": "Classification", "detection": "Detection"}


def task_of(source, data, device: torch.device):
    """The task of a model on a data set; InputError where the data is another task's."""
    if source.task != data.task:
        raise InputError(f"{source.name} is a network for {source.task}, and this data set is for {data.task}")
    module = importlib.import_module(f"bitsplit.tasks.{source.task}")  # mmdet is not everybody's
    return getattr(module, TASKS[source.task])(source, data, device)
