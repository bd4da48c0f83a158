"""Draws what the shipped detectors find on scenes of `glyphs_coco`: ground truth, floating point and W4A4 side by side.

Command:  make predictions   (or: python experiments/draw_predictions.py; after `make setup-detection`)
Data:     glyphs_coco, embedded; 3,000 scenes for calibration are drawn on first use
Expected: a sheet of four scenes and both networks after 5 minutes, on one core
Writes:   results/glyphs_coco/predictions.png
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from script import ROOT, in_one_line, parser_of, use_one_thread

import bitsplit
from bitsplit.data.coco import GlyphsCoco
from bitsplit.networks.detectors import Detector
from bitsplit.report.scene_figure import marked_changes, scene_figure
from bitsplit.report.titles import MODEL_TITLES, PAPER_DETECTORS
from bitsplit.settings import Settings
from bitsplit.tasks.detection import Detection

LEAST_SCORE = 0.5  # detections below it are not drawn


@in_one_line
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--scenes", type=int, nargs="+", default=[1, 3, 4, 5], help="which scenes (default: 1 3 4 5)")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "glyphs_coco" / "predictions.png")
    arguments = parser.parse_args()
    use_one_thread()
    data = GlyphsCoco(validation_scenes=max(arguments.scenes) + 1)
    columns = {}
    for name in PAPER_DETECTORS:
        task = Detection(Detector(name), data, torch.device("cpu"))
        columns.setdefault("ground truth", task.ground_truth)
        settings = Settings(layers=task.layers)
        batches = task.calibration(settings.calibration.batch_size, settings.batch_norm.batches, seed=0)
        quantized = bitsplit.quantize(task.module, batches, wbits=4, abits=4, settings=settings)
        before, after = (task.detections(module, LEAST_SCORE) for module in (task.module, quantized))
        columns[f"{MODEL_TITLES[name]}, floating point"] = before
        columns[f"{MODEL_TITLES[name]}, W4A4"] = {
            index: marked_changes(before[index], after[index]) for index in arguments.scenes
        }
    title = (
        f"glyphs_coco, scenes {', '.join(map(str, arguments.scenes))} of the validation set; scores above "
        f"{LEAST_SCORE}\nW4A4: dotted what floating point alone finds, thick what W4A4 alone finds"
    )
    images = {index: np.asarray(Image.open(task.image(index))) for index in arguments.scenes}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    scene_figure(title, images, columns, task.truth).savefig(arguments.output, dpi=150)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    sys.exit(main())
