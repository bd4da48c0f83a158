"""The embedded data set `glyphs_coco`: scenes of characters with boxes and masks, as PNG files and COCO JSON."""

import functools
import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image

from bitsplit.data import glyph_drawing, scene_drawing
from bitsplit.data.drawn import draw_on_all_cores, drawing_identity, kept_in
from bitsplit.files import cache_root
from bitsplit.kept import store_folder, stored_file

TRAINING_SCENES = 3000
VALIDATION_SCENES = 500
_SCENES = {"train": TRAINING_SCENES, "val": VALIDATION_SCENES}
_CHUNK = 20  # scenes per job of the process pool

_IDENTITY = drawing_identity(glyph_drawing.__file__, scene_drawing.__file__, __file__)


def glyphs_coco_folder(cache_dir: str | Path | None = None) -> Path:
    """Folder of the data set, named after its code and libraries, so a stale cache is never read."""
    return Path(cache_dir or cache_root()) / f"glyphs_coco-{_IDENTITY}"


def drawn_scenes(split: str, scenes: int | None = None, cache_dir: str | Path | None = None) -> Path:
    """Folder with the first scenes of a split, `train` or `val`: 3000 and 500, or as many as `scenes` says.

    It holds `images/000000.png` and so on, 192×192 RGB, and `annotations.json` in the format of COCO's instances, with
    boxes in pixels and masks as uncompressed run lengths. It is drawn on all cores by the first call, under
    `cache_dir` (`cache_root()` if None), is there whole or not at all, and is drawn anew where any file has changed.
    ValueError for another split.
    """
    if split not in _SCENES:
        raise ValueError(f"no split {split!r}, only {', '.join(_SCENES)}")
    return _intact_scenes(glyphs_coco_folder(cache_dir), split, _SCENES[split] if scenes is None else scenes)


@functools.cache  # all files are read, so once a process
def _intact_scenes(folder: Path, split: str, scenes: int) -> Path:
    stem = f"{split}-{scenes}"
    if path := stored_file(folder, stem, ""):
        return path
    with kept_in(folder):
        return store_folder(folder, stem, lambda written: _write_dataset(written, split, scenes))


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's uncompressed encoding of a boolean array (H,W): lengths of its runs, column after column, zeros first."""
    pixels = mask.ravel(order="F")
    starts = np.flatnonzero(np.diff(pixels, prepend=False))
    return {"size": list(mask.shape), "counts": np.diff(starts, prepend=0, append=pixels.size).tolist()}


def _write_dataset(folder: Path, split: str, scenes: int) -> None:
    (folder / "images").mkdir(parents=True)
    annotations = []
    for index, instances in enumerate(_write_scenes(folder / "images", split, scenes)):
        for instance in instances:  # ids from 1: pycocotools takes a match with id 0 for none
            annotations.append({"id": len(annotations) + 1, "image_id": index} | instance)
    side = scene_drawing.SCENE_SIZE
    content = {
        "info": {"description": f"glyphs_coco, {split}, {scenes} scenes"},
        "images": [
            {"id": index, "file_name": _file_name(index), "height": side, "width": side} for index in range(scenes)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(scene_drawing.CATEGORIES, start=1)],
    }
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")


def _file_name(index: int) -> str:
    return f"{index:06d}.png"


def _write_scenes(images: Path, split: str, scenes: int) -> list[list[dict]]:
    """Writes the images on all cores; returns the annotations of each, without ids."""
    jobs = [(images, split, range(start, min(start + _CHUNK, scenes))) for start in range(0, scenes, _CHUNK)]
    chunks = draw_on_all_cores(_write_chunk, jobs, f"glyphs_coco ({split})", "scene", scenes)
    return list(itertools.chain.from_iterable(chunks))


def _write_chunk(job: tuple[Path, str, range]) -> list[list[dict]]:
    images, split, indices = job
    annotations = []
    for index in indices:
        image, instances = scene_drawing.draw_scene(split, index)
        Image.fromarray(image).save(images / _file_name(index), "PNG", compress_level=6)
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
