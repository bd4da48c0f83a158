"""COCO in its usual layout, whole or any subset, and the embedded `glyphs_coco` in the same format."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bitsplit.data.drawn import check_count
from bitsplit.data.glyphs_coco import TRAINING_SCENES, VALIDATION_SCENES, drawn_scenes
from bitsplit.errors import InputError

COCO_VALIDATION = 5_000
# What mmdet and pycocotools ask for and fail without.
_KEYS = {
    "categories": ("id", "name"),
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area"),
}


def read_annotations(path: Path) -> dict:
    """The content of an annotation file, its annotations numbered from 1: pycocotools takes a match with id 0 for none.
    One that does not say whether it is of a crowd is of none."""
    content = json.loads(path.read_text(encoding="utf-8"))
    numbered = [{"iscrowd": 0} | one | {"id": number} for number, one in enumerate(content["annotations"], 1)]
    return content | {"annotations": numbered}


@dataclass(frozen=True)
class Scenes:
    """One split: an annotation file and the folder of its images; `labelled` where these must have annotations, which
    calibration does without."""

    annotations: Path
    images: Path
    labelled: bool = True

    def __len__(self) -> int:
        return len(self._checked[0])

    @property
    def paths(self) -> list[Path]:
        """Files of the images, in the order of the annotations."""
        return [self.images / name for name in self._checked[0]]

    @property
    def categories(self) -> list[str]:
        """Names of the categories, by their identifiers."""
        return self._checked[1]

    @property
    def masks(self) -> bool:
        """Whether every annotation has a mask beside its box."""
        return self._checked[2]

    @cached_property
    def _checked(self) -> tuple[list[str], list[str], bool]:
        """Names of the images and of the categories, and whether there are masks; InputError where the annotations are
        damaged, empty, or name an image that is not there."""
        if not self.annotations.is_file():
            raise InputError(f"{self.annotations} is missing; a COCO folder holds annotations/ and images")
        try:
            content = json.loads(self.annotations.read_text(encoding="utf-8"))
            _check(self.annotations, content, self.labelled)
            names = [image["file_name"] for image in content["images"]]
            categories = [c["name"] for c in sorted(content["categories"], key=lambda category: category["id"])]
            masks = all(one.get("segmentation") for one in content["annotations"])
        except InputError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.annotations} is not a COCO annotation file: {error!r}") from error
        there = {path.name for path in self.images.iterdir()} if self.images.is_dir() else set()
        missing = [name for name in names if name not in there]
        if missing:
            raise InputError(f"{len(missing)} of {len(names)} images are missing, {self.images / missing[0]} first")
        return names, categories, masks


def _check(path: Path, content: dict, labelled: bool) -> None:
    """InputError for the content of an annotation file that COCO's evaluation would fail on, or find nothing in."""
    for part, keys in _KEYS.items():
        if not content[part] and (labelled or part != "annotations"):
            raise InputError(f"{path} names no {part}")
        for entry in content[part]:
            if lacking := [key for key in keys if key not in entry]:
                raise InputError(f"{path} is not a COCO annotation file: one of its {part} has no {lacking[0]!r}")
    images, categories = ({entry["id"] for entry in content[part]} for part in ("images", "categories"))
    seen = set()
    for one in content["annotations"]:
        if one["category_id"] not in categories:
            raise InputError(f"annotation {one['id']} in {path} has no category of the file's list")
        if one["id"] in seen:
            raise InputError(f"{path} has two annotations {one['id']}; give each an id of its own")
        seen.add(one["id"])
    if labelled and not any(one["image_id"] in images for one in content["annotations"]):
        raise InputError(f"{path} names no annotations of its images")


@dataclass(frozen=True)
class Coco:
    """COCO 2017: `root` holds annotations/instances_{train,val}2017.json, train2017/ and val2017/."""

    root: str | None = None

    task = "detection"
    domain = "coco"

    @property
    def name(self) -> str:
        count = len(self.scenes("val"))
        return "coco" if count == COCO_VALIDATION else f"coco_{count}"

    @property
    def title(self) -> str:
        return f"COCO 2017 validation, {len(self.scenes('val')):,} images"

    def scenes(self, split: str) -> Scenes:
        """The scenes of "train" or "val"."""
        if not self.root:
            raise InputError("give the COCO folder with data.root=PATH or the variable COCO_ROOT")
        root = Path(self.root)
        if not root.is_dir():
            raise InputError(f"data.root={self.root} is not a folder")
        return Scenes(root / "annotations" / f"instances_{split}2017.json", root / f"{split}2017", split == "val")


@dataclass(frozen=True)
class GlyphsCoco:
    """The embedded scenes: the first `training_scenes` for training and calibration, of 3,000, and the first
    `validation_scenes` for validation, of 500."""

    validation_scenes: int = VALIDATION_SCENES
    training_scenes: int = TRAINING_SCENES

    task = "detection"
    domain = "glyphs_coco"
    name = "glyphs_coco"

    def __post_init__(self) -> None:
        for key, most in (("validation_scenes", VALIDATION_SCENES), ("training_scenes", TRAINING_SCENES)):
            check_count(key, getattr(self, key), most)

    @property
    def title(self) -> str:
        return f"glyphs_coco validation, {self.validation_scenes} scenes"

    def scenes(self, split: str) -> Scenes:
        """The scenes of "train" or "val", drawn on first use."""
        folder = drawn_scenes(split, {"train": self.training_scenes, "val": self.validation_scenes}[split])
        return Scenes(folder / "annotations.json", folder / "images")
