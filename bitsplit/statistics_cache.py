"""Statistics of a calibration pass on disk, for the next process that starts from the same network and pictures."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from bitsplit import capture, stats
from bitsplit.cache import whole_file
from bitsplit.layout import grouped_weight
from bitsplit.stats import LayerRecord, LayerStats, Statistics, weighted_layers

# Another way of drawing patches makes other statistics.
_CODE = hashlib.sha256(b"".join(Path(module.__file__).read_bytes() for module in (capture, stats))).hexdigest()[:16]


def cached(path: Path, network: nn.Module, collect: Callable[[], Statistics]) -> Statistics:
    """The statistics in the file at `path` with this code's mark, or those of `collect()`, which are then left there.

    Gram matrices are read from the file as they are used and take no memory before. A file that cannot be read is
    collected anew, and one that cannot be written is done without.
    """
    path = path.with_name(f"{path.name}-{_CODE}.pt")
    try:
        return _read(path, network)
    except (OSError, RuntimeError, KeyError, ValueError, EOFError):
        found = collect()
    with suppress(OSError):
        _write(path, found)
    return found


def _read(path: Path, network: nn.Module) -> Statistics:
    state = torch.load(path, weights_only=True, mmap=True)
    device, layers = next(network.parameters()).device, weighted_layers(network)
    records = {}
    for name, (gram, n, *rest) in state["layers"].items():
        weight = grouped_weight(layers[name]).to(gram.dtype)
        records[name] = LayerRecord(name, LayerStats.of_weight(gram.to(device), weight, n), *rest)
    return Statistics(records, state["skipped"], seconds=0.0)


def _write(path: Path, found: Statistics) -> None:
    layers = {
        name: (layer.stats.gram.cpu(), layer.stats.n, layer.signed, layer.source, layer.calls)
        for name, layer in found.layers.items()
    }
    with whole_file(path) as temporary:
        torch.save({"layers": layers, "skipped": found.skipped}, temporary)
