"""The lattice search against bit-split and GPTQ as it is published, on every layer of real networks.

Command:  python experiments/bench_layers.py [--root FOLDER] [--models resnet18 …] [--bits 2 3 4]
Data:     glyphs for its four networks; with --root, ImageNet images (prescaled for a 224 crop) for EfficientNet-Lite0
Expected: 10 minutes on 2 cores; writes results/bench/layers.md and .csv
"""

import sys
import time
from collections.abc import Callable

import pandas
import torch
from hydra import compose
from measure import publish
from published import published_gptq_objective
from script import configurations, in_one_line, parser_of
from torch import Tensor
from tqdm import tqdm

from bitsplit import ptq
from bitsplit.layout import grouped_weight, weighted_layers
from bitsplit.networks.classifiers import PAPER_NETWORKS
from bitsplit.plan import Plan
from bitsplit.report import MODEL_TITLES
from bitsplit.runs.arguments import readable_arguments
from bitsplit.runs.experiment import Run
from bitsplit.solver.bitsplit import solve
from bitsplit.statistics.batches import CalibrationBatches
from bitsplit.statistics.moments import LayerStats

INPUTS = 64  # layers with fewer are counted in the worst case only


def layers_of(model: str, root: str | None) -> list[tuple[str, LayerStats, Tensor]]:
    """Name, statistics and weight (G, M, N) of every layer of a network, with the calibration of `run.py`."""
    data = ["data=glyphs"] if model in PAPER_NETWORKS else ["data=imagenet", f"data.root={root}", "data.resize=null"]
    with configurations():
        run = Run.of(compose("config", readable_arguments([f"model={model}", *data])))
    network = run.bench.task.module
    batches = CalibrationBatches(run.bench.calibration, network)
    statistics = ptq.measure_statistics(network, Plan.of(network, batches, run.method, run.settings), batches)
    weights = weighted_layers(network)
    return [(name, layer.stats, grouped_weight(weights[name])) for name, layer in statistics.layers.items()]


def error_and_seconds(objective: Callable[[], Tensor], stats: LayerStats) -> tuple[float, float]:
    """Relative error of the layer's output, and the seconds it took to find it: the shorter of two timings."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        value = objective()
        seconds.append(time.perf_counter() - start)
    return (1 + value.sum() / stats.energy.sum()).item(), min(seconds)


def compare_layer(model: str, name: str, stats: LayerStats, weight: Tensor, bits: int) -> dict:
    gram, cross = stats.gram, stats.cross
    row = {"model": model, "bits": bits, "layer": name, "shape": "×".join(map(str, weight.shape))}
    row |= {"inputs": weight.shape[-1]}
    objectives = {
        "planes": lambda: solve(gram, cross, bits, weight).objective,
        "GPTQ": lambda: published_gptq_objective(gram, cross, weight, bits),
        "lattice": lambda: solve(gram, cross, bits, weight, "lattice").objective,
    }
    for solver, objective in objectives.items():
        row[solver], row[f"{solver}, s"] = error_and_seconds(objective, stats)
    return row


def summary(layers: pandas.DataFrame) -> dict:
    large = layers[layers["inputs"] >= INPUTS]
    better = layers[["planes", "GPTQ"]].min(axis=1)
    seconds = layers[["planes, s", "GPTQ, s", "lattice, s"]].sum()
    return {
        "layers": len(layers),
        f"lattice / planes ({INPUTS} inputs or more)": (large["lattice"] / large["planes"]).mean(),
        "GPTQ / planes": (large["GPTQ"] / large["planes"]).mean(),
        "worst lattice / better of the two": (layers["lattice"] / better).max(),
        "time lattice / GPTQ": seconds["lattice, s"] / seconds["GPTQ, s"],
        "layers above 7 GPTQ": int((layers["lattice, s"] > 7 * layers["GPTQ, s"]).sum()),
        "time planes / GPTQ": seconds["planes, s"] / seconds["GPTQ, s"],
    }


@in_one_line
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--root", help="folder of ImageNet images: adds EfficientNet-Lite0")
    parser.add_argument("--models", nargs="+", choices=PAPER_NETWORKS, default=PAPER_NETWORKS, help="(default: all)")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4], help="bit-widths (default: 2 3 4)")
    arguments = parser.parse_args()
    for algorithm in ("planes", "lattice"):  # compiles
        solve(torch.eye(2), torch.eye(2), 4, algorithm=algorithm)
    rows = []
    for model in [*(["efficientnet_lite0"] if arguments.root else []), *arguments.models]:
        layers = layers_of(model, arguments.root)
        jobs = [(bits, layer) for bits in arguments.bits for layer in layers]
        rows += [compare_layer(MODEL_TITLES[model], *layer, bits) for bits, layer in tqdm(jobs, model, disable=None)]
    table = pandas.DataFrame(rows)
    groups = [(*key, part) for key, part in table.groupby(["model", "bits"], sort=False)] + [("all", "", table)]
    short = pandas.DataFrame([{"network": model, "bits": bits, **summary(part)} for model, bits, part in groups])
    publish("layers", __doc__, table, short.to_markdown(index=False, floatfmt=".3f"))


if __name__ == "__main__":
    sys.exit(main())
