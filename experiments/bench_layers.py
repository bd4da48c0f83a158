"""The lattice search against the published solver and a GPTQ-style solve, on every layer of real networks.

Command:  python experiments/bench_layers.py [--root FOLDER] [--models resnet18 …] [--bits 2 3 4]
Data:     glyphs for its four networks; with --root, ImageNet pictures (prescaled for a 224 crop) for EfficientNet-Lite0
Expected: 10 minutes on 2 cores; writes results/bench/layers.md and .csv
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import pandas
import torch
from bench_solver import gptq_objective, publish
from hydra import compose, initialize_config_dir
from torch import Tensor
from tqdm import tqdm

from bitsplit.cell import Cell
from bitsplit.layout import grouped_weight
from bitsplit.report import MODEL_TITLES
from bitsplit.solver import solve
from bitsplit.stats import LayerStats, weighted_layers

CONF = Path(__file__).resolve().parents[1] / "conf"
MODELS = ["resnet18", "resnet50", "resnet101", "vgg16_bn"]
INPUTS = 64  # layers with fewer are counted in the worst case only


def layers_of(model: str, root: str | None) -> list[tuple[str, LayerStats, Tensor]]:
    """Name, statistics and weight (G, M, N) of every layer of a network, with the calibration of `run.py`."""
    data = ["data=glyphs"] if model in MODELS else ["data=imagenet", f"data.root={root}", "data.resize=null"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cell = Cell.of(compose("config", [f"model={model}", *data]))
    weights = weighted_layers(cell.bench.task.module)
    statistics = cell.bench.statistics.layers
    return [(name, layer.stats, grouped_weight(weights[name])) for name, layer in statistics.items()]


def timed(objective: Callable[[], Tensor], stats: LayerStats) -> tuple[float, float]:
    """Relative error of the layer's output, and the seconds it took to find it: the shorter of two timings."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        value = objective()
        seconds.append(time.perf_counter() - start)
    return (1 + value.sum() / stats.energy.sum()).item(), min(seconds)


def compared(model: str, name: str, stats: LayerStats, weight: Tensor, bits: int) -> dict:
    gram, cross = stats.gram, stats.cross
    row = {"model": model, "bits": bits, "layer": name, "shape": "×".join(map(str, weight.shape))}
    row |= {"inputs": weight.shape[-1]}
    row["planes"], row["planes, s"] = timed(lambda: solve(gram, cross, bits, weight).objective, stats)
    row["gptq"], row["gptq, s"] = timed(lambda: gptq_objective(gram, cross, weight, bits), stats)
    row["lattice"], row["lattice, s"] = timed(lambda: solve(gram, cross, bits, weight, "lattice").objective, stats)
    return row


def summary(layers: pandas.DataFrame) -> dict:
    large = layers[layers["inputs"] >= INPUTS]
    better = layers[["planes", "gptq"]].min(axis=1)
    seconds = layers[["planes, s", "gptq, s", "lattice, s"]].sum()
    return {
        "layers": len(layers),
        f"lattice / planes ({INPUTS} inputs or more)": (large["lattice"] / large["planes"]).mean(),
        "gptq / planes": (large["gptq"] / large["planes"]).mean(),
        "worst lattice / better of the two": (layers["lattice"] / better).max(),
        "time lattice / gptq": seconds["lattice, s"] / seconds["gptq, s"],
        "layers above 7 gptq": int((layers["lattice, s"] > 7 * layers["gptq, s"]).sum()),
        "time planes / gptq": seconds["planes, s"] / seconds["gptq, s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of ImageNet pictures: adds EfficientNet-Lite0")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="glyph networks (default: all)")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4], help="bit-widths (default: 2 3 4)")
    arguments = parser.parse_args()
    solve(torch.eye(2), torch.eye(2), 4, algorithm="lattice"), solve(torch.eye(2), torch.eye(2), 4)  # compiles
    rows = []
    for model in [*(["efficientnet_lite0"] if arguments.root else []), *arguments.models]:
        layers = layers_of(model, arguments.root)
        jobs = [(bits, layer) for bits in arguments.bits for layer in layers]
        rows += [compared(MODEL_TITLES[model], *layer, bits) for bits, layer in tqdm(jobs, model, disable=None)]
    table = pandas.DataFrame(rows)
    groups = [(*key, part) for key, part in table.groupby(["model", "bits"], sort=False)] + [("all", "", table)]
    short = pandas.DataFrame([{"network": model, "bits": bits, **summary(part)} for model, bits, part in groups])
    publish("layers", __doc__, table, short.to_markdown(index=False, floatfmt=".3f"))


if __name__ == "__main__":
    main()
