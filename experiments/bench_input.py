"""How many images a second are decoded, by one process and by the workers of an evaluation, and read the next time.

Command:  python experiments/bench_input.py [--root FOLDER]
Data:     JPEG files of 500×375 drawn for it, or those under --root; scenes too, after `make setup-detection`
Expected: half a minute; writes results/bench/input.md and .csv
"""

import importlib.util
import sys
import tempfile
from collections import deque
from pathlib import Path

import numpy as np
import pandas
from measure import publish, seconds_once
from PIL import Image
from script import in_one_line, parser_of

from bitsplit.data.coco import GlyphsCoco
from bitsplit.data.glyphs import load_glyphs
from bitsplit.data.images import ImageBatches, ImageFiles, Preprocessing, image_paths
from bitsplit.data.processes import available_cores
from bitsplit.files import user_path
from bitsplit.kept import computing_anew

IMAGES, BATCH = 1000, 32


def drawn_files(folder: Path) -> list[Path]:
    """JPEG files of ImageNet's usual size: sheets of glyphs, with as many edges as photographs have."""
    pixels, _ = load_glyphs("val", 48)
    sheet = pixels.reshape(6, 8, 64, 64, 3).swapaxes(1, 2).reshape(384, 512, 3)
    paths = [folder / f"{index}.jpg" for index in range(IMAGES)]
    for index, path in enumerate(paths):
        Image.fromarray(np.roll(sheet, 7 * index, axis=1)[:375, :500]).save(path, quality=90)
    return paths


def image_rates(paths: list[Path]) -> list[dict]:
    """Images decoded, resized to 256 and cropped to 224, as for ImageNet."""
    preprocessing = Preprocessing()
    files = ImageFiles(paths, [0] * len(paths), preprocessing.evaluation(256))
    alone = seconds_once(lambda: [files[index] for index in range(len(files))])
    batches = ImageBatches(files, preprocessing, BATCH)
    with computing_anew():  # leaves nothing in the cache
        together, again = (seconds_once(lambda: deque(batches, maxlen=0)) for _ in range(2))
    row = _row("images, 256 and crop 224", len(files), alone, together)
    return [row | {"images/s, decoded before": len(files) / again}]


def scene_rates() -> list[dict]:
    """Scenes of glyphs_coco through the pipeline of a detector."""
    import torch

    from bitsplit.networks.detectors import Detector
    from bitsplit.tasks.detection import Detection, read_image, scene_batches

    task = Detection(Detector("retinanet"), GlyphsCoco(validation_scenes=400), torch.device("cpu"))
    dataset = task.dataset(task.data.scenes("val"))
    alone = seconds_once(lambda: [read_image(dataset, index) for index in range(len(dataset))])
    together = seconds_once(lambda: list(scene_batches(dataset, range(len(dataset)), BATCH)))
    return [_row("scenes of glyphs_coco", len(dataset), alone, together)]


def _row(what: str, images: int, alone: float, together: float) -> dict:
    cores = available_cores()
    return {
        "files": what,
        "images": images,
        "images/s, one process": images / alone,
        "images/s, workers": images / together,
        "images/s a core, workers": images / together / cores,
        "cores": cores,
    }


@in_one_line
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--root", type=user_path, help="folder of image files to decode")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        paths = image_paths(arguments.root)[:IMAGES] if arguments.root else drawn_files(Path(scratch))
        rows = image_rates(paths)
    if importlib.util.find_spec("mmdet") is not None:
        rows += scene_rates()
    table = pandas.DataFrame(rows)
    text = table.round(1).astype(object).fillna("–").to_markdown(index=False)
    publish("input", __doc__, table, text)


if __name__ == "__main__":
    sys.exit(main())
