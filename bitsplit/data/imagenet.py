"""ImageNet in its usual layout, train/<wnid>/ and val/<wnid>/, whole or any subset of it; and Imagenette.

A class is known by its WordNet id, so subsets keep the indices of the 1,000-class networks.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bitsplit.data.images import ImageBatches, ImageFiles, Preprocessing, calibration_batches, check_resize, image_paths
from bitsplit.data.readable import with_readable_images
from bitsplit.errors import InputError

WNIDS = Path(__file__).with_name("imagenet_wnids.txt").read_text(encoding="utf-8").split()
CLASS_INDEX = {wnid: index for index, wnid in enumerate(WNIDS)}
IMAGENET_VALIDATION = 50_000


@dataclass(frozen=True)
class ImageNet:
    """`root` holds train/ and val/. `resize` is the shorter side before the validation crop; null keeps images as
    they are, for copies that are prescaled. Calibration takes random-resized crops of training images."""

    root: str | None = None
    resize: int | None = 256

    task = "classification"
    domain = "imagenet"

    def __post_init__(self) -> None:
        check_resize(self.resize)

    @property
    def name(self) -> str:
        count = len(self._validation[0])
        return "imagenet" if count == IMAGENET_VALIDATION else f"imagenet_{count}"

    @property
    def title(self) -> str:
        return f"ImageNet validation, {len(self._validation[0]):,} images"

    def calibration(self, preprocessing: Preprocessing, batch_size: int, batches: int, seed: int) -> ImageBatches:
        chosen = calibration_batches(*self._train, preprocessing, batch_size, batches, seed)
        return with_readable_images(chosen, self._root() / "train")

    def validation(self, preprocessing: Preprocessing, batch_size: int) -> ImageBatches:
        files = ImageFiles(*self._validation, preprocessing.evaluation(self.resize))
        return with_readable_images(ImageBatches(files, preprocessing, batch_size), self._root() / "val")

    @cached_property
    def _train(self) -> tuple[list[Path], list[int]]:
        return self._split("train")

    @cached_property
    def _validation(self) -> tuple[list[Path], list[int]]:
        return self._split("val")

    def _split(self, split: str) -> tuple[list[Path], list[int]]:
        folder = self._root() / split
        if not folder.is_dir():
            raise InputError(f"{folder} is missing; an ImageNet folder holds train/<wnid>/ and val/<wnid>/")
        found = image_paths(folder)
        paths = [path for path in found if path.parent.name in CLASS_INDEX]
        if not paths:
            raise InputError(
                f"{folder} has no class folders named by WordNet id (n01440764, …); sort its images into them first"
            )
        if others := set(found) - set(paths):
            left = f"{len(others):,} of {len(found):,} images in {folder} are left out"
            print(f"warning: {left}: {min(others).parent.name} is no WordNet id (n01440764, …)", file=sys.stderr)
        return paths, [CLASS_INDEX[path.parent.name] for path in paths]

    def _root(self) -> Path:
        if not self.root:
            raise InputError("give the ImageNet folder with data.root=PATH or the variable IMAGENET_ROOT")
        if not Path(self.root).is_dir():
            raise InputError(f"data.root={self.root} is not a folder")
        return Path(self.root)


@dataclass(frozen=True)
class Imagenette(ImageNet):
    """Ten easy ImageNet classes (13,394 images, 320 px), downloaded on first use into `root`; evaluated with the
    1,000-class networks on the classes' own ImageNet indices."""

    name = "imagenette"

    @property
    def title(self) -> str:
        return f"Imagenette validation, {len(self._validation[0]):,} images"

    def _root(self) -> Path:
        if not self.root:
            raise InputError("give a folder for Imagenette with data.root=PATH")
        folder = Path(self.root) / "imagenette2-320"
        if not folder.is_dir():
            self._download(folder)
        return folder

    def _download(self, folder: Path) -> None:
        """Downloads and unpacks beside the place, then renames: an interrupted download leaves nothing behind."""
        from bitsplit.vision import torchvision

        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                torchvision.datasets.Imagenette(scratch, split="val", size="320px", download=True)
                try:
                    os.replace(Path(scratch) / folder.name, folder)
                except OSError:
                    if not folder.is_dir():  # no other run has put it there meanwhile
                        raise
        except (OSError, RuntimeError) as error:  # URLError is an OSError
            raise InputError(
                f"Imagenette could not be downloaded ({error}); put imagenette2-320.tgz into {self.root} "
                "and unpack it there"
            ) from error
