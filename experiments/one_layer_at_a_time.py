"""Which layers of a detector lose average precision: each quantized alone, all others in floating point.

Command:  python experiments/one_layer_at_a_time.py [--networks retinanet] [--scenes 100]
Data:     glyphs_coco, embedded; after `make setup-detection`
Expected: 4 minutes for both networks on one core
Writes:   results/glyphs_coco/layers/one_layer_at_a_time.csv, .md and .tex
"""

import argparse
import copy
from pathlib import Path

import numba
import pandas
import torch

import bitsplit
from bitsplit.config import Settings
from bitsplit.data.coco import GlyphsCoco
from bitsplit.detectors import MaskRCNN, RetinaNet
from bitsplit.layers import replace_module
from bitsplit.progress import progress
from bitsplit.report.render import Table, write
from bitsplit.tasks.detection import Detection

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {"retinanet": RetinaNet, "mask_rcnn": MaskRCNN}
SHOWN = 8  # layers of each network in the Markdown


def alone(task: Detection) -> list[dict]:
    """One row a layer: its errors at W4A4 and what it takes off AP when it is the only quantized one."""
    settings = Settings(layers=task.layers)
    batches = task.calibration(settings.calibration.batch_size, settings.calibration.gram_batches, seed=0)
    quantized = bitsplit.quantize(task.module, batches, wbits=4, abits=4, settings=settings)
    floating_point = task.floating_point[1]
    rows = []
    for layer in progress(quantized.report.to_dict("records"), "layers"):
        network = copy.deepcopy(task.module)
        replace_module(network, network.get_submodule(layer["name"]), quantized.get_submodule(layer["name"]))
        metrics = task.evaluate(network)
        drops = {f"{key}_drop": value - metrics[key] for key, value in floating_point.items() if key.endswith("_ap")}
        errors = {key: layer[key] for key in ("wbits", "abits", "signed", "relative_error", "input_error")}
        rows.append({"model": task.network.name, "layer": layer["name"].removeprefix("detector.")} | errors | drops)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="default: both")
    parser.add_argument("--scenes", type=int, default=100, help="validation scenes (default: 100)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as the records
    numba.set_num_threads(1)
    data = GlyphsCoco(validation_scenes=arguments.scenes)
    rows = []
    for name in arguments.networks:
        rows += alone(Detection(NETWORKS[name](), data, torch.device("cpu")))
    table = pandas.DataFrame(rows).round(6)
    worst = table.sort_values("bbox_ap_drop", ascending=False).groupby("model", sort=False).head(SHOWN)
    worst = worst.sort_values(["model", "bbox_ap_drop"], ascending=[False, False])
    caption = (
        f"What one layer alone takes off, with 4-bit weights and inputs (first and prediction layers 8) and all others "
        f"in floating point: AP in points on {data.title}, the {SHOWN} layers of each network that take most"
    )
    folder = ROOT / "results" / "glyphs_coco" / "layers"
    print(write(Table(caption, table, worst.astype(object).map(_text)), folder, "one_layer_at_a_time"))


def _text(value: object) -> str:
    if pandas.isna(value):
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
