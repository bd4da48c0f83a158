"""A small COCO folder of drawn scenes."""

import shutil
from pathlib import Path

from bitsplit.data.glyphs_coco import drawn_scenes


def write_coco(root: Path, scenes: int) -> Path:
    """`root` in the layout of COCO 2017, with `scenes` scenes of glyphs_coco for training and for validation."""
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        drawn = drawn_scenes(split, scenes)
        shutil.copytree(drawn / "images", root / f"{split}2017")
        shutil.copy(drawn / "annotations.json", root / "annotations" / f"instances_{split}2017.json")
    return root
