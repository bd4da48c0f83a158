"""Predictions of the floating-point network on disk: one evaluation for all processes that compare with them."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bitsplit.data.making import images_made_by
from bitsplit.files import cache_root, facts_digest, files_digest, sources_digest
from bitsplit.kept import kept
from bitsplit.networks.network import Network

_PACKAGE = Path(__file__).resolve().parents[1]
_CODE = sources_digest(path for room in ("networks", "tasks") for path in (_PACKAGE / room).glob("*.py"))

Predictions = tuple[Tensor, Tensor, int]  # logits (images, classes), labels (images,) and images that were skipped


def kept_predictions(
    network: Network, data, files: Iterable[Path], device: torch.device, predict: Callable[[], Predictions]
) -> Predictions:
    """What `predict()` gives for this network on these files of `data`, from the cache where it is there."""
    facts = {
        "network": network.identity,
        "data": dataclasses.asdict(data) | {"title": data.title, "root": str(getattr(data, "root", None))},
        "files": files_digest(files, Path(data.root), times=True) if files else None,
        "images": images_made_by(),
        "arithmetic": [device.type, torch.get_num_threads(), torch.__version__],
        "code": _CODE,
    }
    stem = facts_digest(facts)[:16]
    return kept(cache_root() / "predictions", stem, ".safetensors", predict, _write, _read, lambda made: not made[2])


def _write(path: Path, predictions: Predictions) -> None:
    logits, labels, skipped = predictions
    safetensors.torch.save_file({"logits": logits, "labels": labels}, path, metadata={"skipped": str(skipped)})


def _read(path: Path) -> Predictions:
    with safetensors.safe_open(path, framework="pt") as file:
        return file.get_tensor("logits"), file.get_tensor("labels"), int(file.metadata()["skipped"])
