"""Statistics of a calibration pass on disk, for the next process that starts from the same network and images."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import safetensors
import safetensors.torch
from torch import nn

from bitsplit.files import sources_digest
from bitsplit.kept import kept
from bitsplit.layout import grouped_weight, weighted_layers
from bitsplit.statistics import batches, capture, moments, reads
from bitsplit.statistics.moments import LayerRecord, LayerStats, Statistics

# Another way of drawing patches makes other statistics.
_CODE = sources_digest(Path(module.__file__) for module in (batches, capture, moments, reads))[:16]


def cached_statistics(
    path: Path,
    network: nn.Module,
    collect: Callable[[], Statistics],
    whole: Callable[[Statistics], bool] = lambda _: True,
) -> Statistics:
    """The statistics stored under `path` and this code's mark, or those of `collect()`, which are then left there if
    they are `whole`.

    A file is used only where its content has the digest in its name; else the statistics are collected anew. One line
    of warning says so, or that nothing could be stored.
    """
    read = partial(_read_statistics, network)
    return kept(path.parent, f"{path.name}-{_CODE}", ".safetensors", collect, _write_statistics, read, whole)


def _read_statistics(network: nn.Module, path: Path) -> Statistics:
    device, layers = next(network.parameters()).device, weighted_layers(network)
    with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
        facts = json.loads(file.metadata()["statistics"])
        records = {}
        for name, (n, signed, calls) in facts["layers"].items():
            gram = file.get_tensor(name)
            stats = LayerStats.of_weight(gram, grouped_weight(layers[name]).to(gram.dtype), n)
            records[name] = LayerRecord(stats, signed, calls)
    return Statistics(records, facts["skipped"], seconds=0.0)


def _write_statistics(path: Path, statistics: Statistics) -> None:
    facts = {
        "layers": {name: (layer.stats.n, layer.signed, layer.calls) for name, layer in statistics.layers.items()},
        "skipped": statistics.skipped,
    }
    grams = {name: layer.stats.gram.contiguous() for name, layer in statistics.layers.items()}
    safetensors.torch.save_file(grams, path, metadata={"statistics": json.dumps(facts)})
