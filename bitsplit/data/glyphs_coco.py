"""The embedded data set `glyphs_coco`: scenes of characters with boxes and masks, as PNG files and COCO JSON."""

import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from bitsplit.cache import cache_root
from bitsplit.data import glyph_drawing, scene_drawing
from bitsplit.data.pictures import available_cores

TRAINING_SCENES = 3000
VALIDATION_SCENES = 500
_SCENES = {"train": TRAINING_SCENES, "val": VALIDATION_SCENES}
_CHUNK = 20  # scenes per job of the process pool

# Everything that the files depend on. Taken at import, when the source on disk is still the code that draws.
_IDENTITY = hashlib.sha256(
    b"".join(Path(source).read_bytes() for source in (glyph_drawing.__file__, scene_drawing.__file__, __file__))
    + f"pillow {PIL.__version__} matplotlib {matplotlib.__version__} numpy {np.__version__}".encode()
).hexdigest()[:16]


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Folder of the data set, named after its code and libraries, so a stale cache is never read."""
    return Path(cache_dir or cache_root()) / f"glyphs_coco-{_IDENTITY}"


def dataset(split: str, scenes: int | None = None, cache_dir: str | Path | None = None) -> Path:
    """Folder with the first scenes of a split, `train` or `val`: 3000 and 500, or as many as `scenes` says.

    It holds `images/000000.png` and so on, 192×192 RGB, and `annotations.json` in the format of COCO's instances, with
    boxes in pixels and masks as uncompressed run lengths. It is written on all cores by the first call, under
    `cache_dir` (`cache_root()` if None), and is there whole or not at all. ValueError for another split.
    """
    if split not in _SCENES:
        raise ValueError(f"no split {split!r}, only {', '.join(_SCENES)}")
    scenes = _SCENES[split] if scenes is None else scenes
    folder = cache_folder(cache_dir) / f"{split}-{scenes}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", suffix=".tmp", dir=folder.parent) as scratch:
        written = Path(scratch) / folder.name
        _write(written, split, scenes)
        try:
            os.rename(written, folder)
        except OSError:  # a folder that is not empty is never replaced: another process was faster
            if not folder.is_dir():
                raise
    return folder


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's uncompressed encoding of a boolean array (H,W): lengths of its runs, column after column, zeros first."""
    pixels = mask.ravel(order="F")
    starts = np.flatnonzero(np.diff(pixels, prepend=False))
    return {"size": list(mask.shape), "counts": np.diff(starts, prepend=0, append=pixels.size).tolist()}


def _write(folder: Path, split: str, scenes: int) -> None:
    (folder / "images").mkdir(parents=True)
    annotations = []
    for index, instances in enumerate(_write_scenes(folder / "images", split, scenes)):
        for instance in instances:  # ids from 1: pycocotools takes a match with id 0 for none
            annotations.append({"id": len(annotations) + 1, "image_id": index} | instance)
    side = scene_drawing.SIZE
    content = {
        "info": {"description": f"glyphs_coco, {split}, {scenes} scenes"},
        "images": [
            {"id": index, "file_name": _file_name(index), "height": side, "width": side} for index in range(scenes)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(scene_drawing.CATEGORIES, start=1)],
    }
    (folder / "annotations.json").write_text(json.dumps(content))


def _file_name(index: int) -> str:
    return f"{index:06d}.png"


def _write_scenes(images: Path, split: str, scenes: int) -> list[list[dict]]:
    """Writes the pictures by a process pool under one progress bar; returns the annotations of each, without ids."""
    jobs = [(images, split, range(start, min(start + _CHUNK, scenes))) for start in range(0, scenes, _CHUNK)]
    annotations = []
    # A forked worker does not import the caller's script again, so a script needs no `__main__` guard.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    leave_interrupts_to_parent = (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(available_cores(), context, signal.signal, leave_interrupts_to_parent)
    try:
        with tqdm(total=scenes, desc=f"drawing glyphs_coco ({split})", unit="scene", disable=None) as progress:
            for chunk in pool.map(_write_chunk, jobs):
                annotations += chunk
                progress.update(len(chunk))
    finally:
        pool.shutdown(cancel_futures=True)
    return annotations


def _write_chunk(job: tuple[Path, str, range]) -> list[list[dict]]:
    images, split, indices = job
    annotations = []
    for index in indices:
        picture, instances = scene_drawing.draw(split, index)
        Image.fromarray(picture).save(images / _file_name(index), "PNG", compress_level=6)
        annotations.append([_annotation(instance) for instance in instances])
    return annotations


def _annotation(instance: scene_drawing.Instance) -> dict:
    return {
        "category_id": instance.category + 1,
        "bbox": list(scene_drawing.box(instance.mask)),
        "area": int(instance.mask.sum()),
        "iscrowd": 0,
        "segmentation": run_lengths(instance.mask),
    }
