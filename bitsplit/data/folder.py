"""Any folder of unlabelled images: no accuracy, but agreement with the floating-point network."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bitsplit.data.images import ImageBatches, ImageFiles, Preprocessing, calibration_batches, check_resize, image_paths
from bitsplit.data.readable import with_readable_images
from bitsplit.errors import InputError

UNLABELLED = -1


@dataclass(frozen=True)
class Folder:
    """Images anywhere under `root`. The same images calibrate (in random crops) and evaluate (whole)."""

    root: str | None = None
    resize: int | None = 256

    task = "classification"
    domain = "imagenet"

    def __post_init__(self) -> None:
        check_resize(self.resize)

    @property
    def name(self) -> str:
        return f"folder_{Path(self.root).resolve().name}"

    @property
    def title(self) -> str:
        return f"{len(self._paths):,} unlabelled images of {Path(self.root).resolve().name}"

    def calibration(self, preprocessing: Preprocessing, batch_size: int, batches: int, seed: int) -> ImageBatches:
        labels = [UNLABELLED] * len(self._paths)
        chosen = calibration_batches(self._paths, labels, preprocessing, batch_size, batches, seed)
        return with_readable_images(chosen, Path(self.root))

    def validation(self, preprocessing: Preprocessing, batch_size: int) -> ImageBatches:
        files = ImageFiles(self._paths, [UNLABELLED] * len(self._paths), preprocessing.evaluation(self.resize))
        return with_readable_images(ImageBatches(files, preprocessing, batch_size), Path(self.root))

    @cached_property
    def _paths(self) -> list[Path]:
        if not self.root:
            raise InputError("give the images' folder with data.root=PATH")
        return image_paths(Path(self.root))
