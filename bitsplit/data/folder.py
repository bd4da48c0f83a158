"""Any folder of unlabelled pictures: no accuracy, but agreement with the floating-point network."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bitsplit.data.pictures import (
    PictureBatches,
    PictureFiles,
    Preprocessing,
    calibration_order,
    check_calibration,
    picture_paths,
)
from bitsplit.errors import InputError

UNLABELLED = -1


@dataclass(frozen=True)
class Folder:
    """Pictures anywhere under `root`. The same pictures calibrate (in random crops) and evaluate (whole)."""

    root: str | None = None
    resize: int | None = 256

    task = "classification"
    domain = "imagenet"

    @property
    def name(self) -> str:
        return f"folder_{Path(self.root).resolve().name}"

    @property
    def title(self) -> str:
        return f"{len(self._paths):,} unlabelled pictures of {Path(self.root).resolve().name}"

    def calibration(self, preprocessing: Preprocessing, batch_size: int, batches: int, seed: int) -> PictureBatches:
        check_calibration(len(self._paths), batch_size)
        order = calibration_order(len(self._paths), batch_size * batches, seed)
        paths = [self._paths[i] for i in order]
        files = PictureFiles(paths, [UNLABELLED] * len(paths), preprocessing.augmentation(), seed)
        return PictureBatches(files, preprocessing, batch_size, drop_last=True)

    def validation(self, preprocessing: Preprocessing, batch_size: int) -> PictureBatches:
        files = PictureFiles(self._paths, [UNLABELLED] * len(self._paths), preprocessing.evaluation(self.resize))
        return PictureBatches(files, preprocessing, batch_size)

    @cached_property
    def _paths(self) -> list[Path]:
        if not self.root:
            raise InputError("give the pictures' folder with data.root=PATH")
        return picture_paths(Path(self.root))
