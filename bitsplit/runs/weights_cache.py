"""Integer weights on disk, for runs that differ from an earlier one in their activations or in batch-norm alone."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from bitsplit.kept import kept
from bitsplit.methods import Codes
from bitsplit.ptq import Weights

_PARTS = ("codes", "scale", "offset")  # of a layer's weights, each a tensor LAYER/PART


def cached_weights(
    path: Path, device: str, solve: Callable[[], Weights], whole: Callable[[Weights], bool] = lambda _: True
) -> Weights:
    """The weights stored under `path`, on `device`, or those of `solve()`, which are then left there if they are
    `whole`.

    Their seconds are those that solving them took, whenever that was.
    """
    return kept(path.parent, path.name, ".safetensors", solve, _write_weights, partial(_read_weights, device), whole)


def _read_weights(device: str, path: Path) -> Weights:
    with safetensors.safe_open(path, framework="pt", device=device) as file:
        facts = json.loads(file.metadata()["weights"])
        there = set(file.keys())
        codes = {
            name: Codes(*(file.get_tensor(key) if (key := f"{name}/{part}") in there else None for part in _PARTS))
            for name in facts["layers"]
        }
    return Weights(codes, facts["seconds"])


def _write_weights(path: Path, weights: Weights) -> None:
    tensors = {
        f"{name}/{part}": tensor.clone(memory_format=torch.contiguous_format)
        for name, codes in weights.codes.items()
        for part in _PARTS
        if (tensor := getattr(codes, part)) is not None
    }
    facts = {"layers": list(weights.codes), "seconds": weights.seconds}
    safetensors.torch.save_file(tensors, path, metadata={"weights": json.dumps(facts)})
