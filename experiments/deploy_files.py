"""ONNX files in onnxruntime, as networks of torch, and timed."""

import time
import warnings
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

ROUNDS = 30

onnxruntime.set_default_logger_severity(3)  # errors alone


class _Session(nn.Module):
    """A file with one input and one output under onnxruntime's default options."""

    def __init__(self, path: Path):
        super().__init__()
        self.session = onnxruntime.InferenceSession(path)
        self.name = self.session.get_inputs()[0].name

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {self.name: images.contiguous().numpy()})[0])


def session_of(path: Path) -> nn.Module:
    return _Session(path)


def write_float(network: nn.Module, example: Tensor, path: Path) -> None:
    """The floating-point network as torch.onnx writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own code
        torch.onnx.export(network, (example,), path, dynamo=True, external_data=False, verbose=False)


def milliseconds(paths: dict[str, Path], image: Tensor) -> dict[str, float]:
    """The least time of one image on one thread, for each file; they take turns, so that all see the same machine."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {name: onnxruntime.InferenceSession(path, options) for name, path in paths.items()}
    best = dict.fromkeys(sessions, float("inf"))
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            values = {session.get_inputs()[0].name: image.numpy()}
            start = time.perf_counter()
            session.run(None, values)
            best[name] = min(best[name], time.perf_counter() - start)
    return {name: round(1000 * seconds, 3) for name, seconds in best.items()}
