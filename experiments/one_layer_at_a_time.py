"""Which layers of a detector lose average precision: each quantized alone, all others in floating point.

Command:  python experiments/one_layer_at_a_time.py [--networks retinanet] [--scenes 100]
Data:     glyphs_coco, embedded; after `make setup-detection`
Expected: 4 minutes for both networks on one core
Writes:   results/glyphs_coco/layers/one_layer_at_a_time.csv, .md and .tex
"""

import copy
import sys

import pandas
import torch
from script import ROOT, in_one_line, parser_of, use_one_thread

import bitsplit
from bitsplit.data.coco import GlyphsCoco
from bitsplit.layers.quantized import replace_module
from bitsplit.networks.detectors import Detector
from bitsplit.progress import progress
from bitsplit.report.render import Table, write_table
from bitsplit.report.texts import number_text
from bitsplit.report.titles import PAPER_DETECTORS
from bitsplit.settings import Settings
from bitsplit.tasks.detection import Detection

SHOWN = 8  # layers of each network in the Markdown


def alone(task: Detection) -> list[dict]:
    """One row a layer: its errors at W4A4 and what it takes off AP when it is the only quantized one."""
    settings = Settings(layers=task.layers)
    batches = task.calibration(settings.calibration.batch_size, settings.calibration.gram_batches, seed=0)
    quantized = bitsplit.quantize(task.module, batches, wbits=4, abits=4, settings=settings)
    floating_point = task.float_metrics
    rows = []
    for layer in progress(quantized.report.to_dict("records"), "layers"):
        network = copy.deepcopy(task.module)
        replace_module(network, network.get_submodule(layer["name"]), quantized.get_submodule(layer["name"]))
        metrics = task.evaluate(network)
        drops = {f"{key}_drop": value - metrics[key] for key, value in floating_point.items() if key.endswith("_ap")}
        errors = {key: layer[key] for key in ("wbits", "abits", "signed", "relative_error", "input_error")}
        rows.append({"model": task.network.name, "layer": layer["name"].removeprefix("detector.")} | errors | drops)
    return rows


@in_one_line
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", choices=PAPER_DETECTORS, default=PAPER_DETECTORS, help="default: both")
    parser.add_argument("--scenes", type=int, default=100, help="validation scenes (default: 100)")
    arguments = parser.parse_args()
    use_one_thread()
    data = GlyphsCoco(validation_scenes=arguments.scenes)
    rows = []
    for name in arguments.networks:
        rows += alone(Detection(Detector(name), data, torch.device("cpu")))
    table = pandas.DataFrame(rows).round(6)
    worst = table.sort_values("bbox_ap_drop", ascending=False).groupby("model", sort=False).head(SHOWN)
    worst = worst.sort_values(["model", "bbox_ap_drop"], ascending=[False, False])
    caption = (
        f"What one layer alone takes off, with 4-bit weights and inputs (first and prediction layers 8) and all others "
        f"in floating point: AP in points on {data.title}, the {SHOWN} layers of each network that take most"
    )
    folder = ROOT / "results" / "glyphs_coco" / "layers"
    shown = worst.astype(object).map(lambda value: number_text(value, digits=4))
    print(write_table(Table(caption, table, shown), folder, "one_layer_at_a_time"))


if __name__ == "__main__":
    sys.exit(main())
