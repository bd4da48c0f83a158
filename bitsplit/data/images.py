"""Image files on disk: decoding, the usual transforms, and damaged files named and counted, never a crash mid-run."""

import collections
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bitsplit.data.decoded import DecodedImages
from bitsplit.data.processes import reading_workers
from bitsplit.errors import InputError
from bitsplit.progress import progress

LARGEST_RESIZE = 4096
EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"])


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of an image: mean and std per channel on the 0..1 scale, and sizes in pixels."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop: int = 224
    interpolation: str = "bilinear"

    def evaluation(self, resize: int | None) -> Callable[[Image.Image], Tensor]:
        """Shorter side to `resize` (as it is where None) and centre crop; uint8 (3, H, W)."""
        from bitsplit.vision import transforms as v2

        shrink = [v2.Resize(resize, v2.InterpolationMode(self.interpolation))] if resize else []
        return v2.Compose([*shrink, v2.CenterCrop(self.crop), v2.PILToTensor()])

    def augmentation(self) -> Callable[[Image.Image], Tensor]:
        """Random-resized crop and flip, as in training; uint8 (3, H, W). The authors calibrate on such crops."""
        from bitsplit.vision import transforms as v2

        crop = v2.RandomResizedCrop(self.crop, interpolation=v2.InterpolationMode(self.interpolation))
        return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def normalise(self, images: Tensor) -> Tensor:
        """The network's float32 input of uint8 images (N, 3, H, W)."""
        from bitsplit.vision import torchvision

        unit = images.to(torch.float32).mul_(1 / 255)
        return torchvision.transforms.functional.normalize(unit, list(self.mean), list(self.std), inplace=True)


class ImageFiles(Dataset):
    """Images as `transform` makes them; None for a file that cannot be decoded. `labels` are theirs.

    Random transforms draw from a stream fixed by (seed, index), whatever process loads the image.
    """

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], transform: Callable, seed: int = 0):
        self.paths, self.labels, self.transform, self.seed = paths, labels, transform, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | None:
        try:
            with Image.open(self.paths[index]) as file:
                image = _as_rgb(file)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None
        with torch.random.fork_rng(devices=[]):
            # Hashed together: torch's CPU generator reads only the low 32 bits of its seed.
            torch.default_generator.manual_seed(zlib.crc32(f"{self.seed}/{index}".encode()))
            return self.transform(image)


def _as_rgb(image: Image.Image) -> Image.Image:
    """In 8 bits; ValueError where the numbers have no known range."""
    if image.mode.startswith("I;16"):  # which Pillow would cut off at 255
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of the mode {image.mode} have no known range")
    return image.convert("RGB")


class ImageBatches:
    """Batches (images (N, 3, H, W), labels (N,)) of image files, in a fixed order, as often as asked for.

    Images are decoded once. `paths` are the files; `skipped` holds the damaged ones met so far, each of which is named
    on stderr once.
    """

    def __init__(self, files: ImageFiles, preprocessing: Preprocessing, batch_size: int, drop_last: bool = False):
        self.batch_size, self.paths = batch_size, files.paths
        self.skipped: set[str] = set()
        self._preprocessing, self._met = preprocessing, 0
        self._labels = torch.tensor(files.labels)
        self._loader = DataLoader(
            files, batch_size, drop_last=drop_last, collate_fn=_readable_only, **reading_workers()
        )
        self._decoded = DecodedImages(self._loader, preprocessing.crop)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start = 0
        for images, readable in self._decoded:
            these = slice(start, start := start + len(readable))
            self._met = max(self._met, start)
            self._name_damaged(str(path) for path, read in zip(self.paths[these], readable, strict=True) if not read)
            if len(images):
                yield self._preprocessing.normalise(images), self._labels[these][readable]

    @property
    def readable(self) -> int:
        """How many of the images in the batches can be read. Those that no pass has met yet are read for it: what runs
        keep for each other may have spared this process all passes."""
        count = min(len(self) * self.batch_size, len(self.paths))
        if self._met < count:
            collections.deque(progress(self, "images that nobody has read yet"), maxlen=0)
        return count - len(self.skipped)

    def _name_damaged(self, paths: Iterable[str]) -> None:
        for path in sorted(set(paths) - self.skipped):
            print(f"warning: skipped {path}: not a readable image", file=sys.stderr)
            self.skipped.add(path)


def _readable_only(images: list[Tensor | None]) -> tuple[np.ndarray, np.ndarray]:
    """The images that could be decoded, and which of all those are (N,); arrays, for `reading_workers`."""
    decoded = [image.numpy() for image in images if image is not None]
    return np.stack(decoded) if decoded else np.empty(0, np.uint8), np.array([image is not None for image in images])


def image_paths(folder: Path) -> list[Path]:
    """All image files under `folder`, sorted; InputError when it is no folder, holds none, or it or a folder in it
    cannot be read, which a plain listing would leave out and say nothing."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}); permit it (chmod u+rx) or move it away")

    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the images' folder with data.root=PATH")
    files = (Path(place, name) for place, names in _walked(folder, refuse) for name in names)
    paths = sorted(path for path in files if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not paths:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(EXTENSIONS))})")
    return paths


def _walked(folder: Path, onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str]]]:
    """The folders below `folder`, links to folders among them, each once, with the names of their files."""
    seen = set()
    for place, folders, names in os.walk(folder, onerror=onerror, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()  # a link back
            continue
        seen.add(real)
        yield place, names


def calibration_batches(
    paths: Sequence[Path], labels: Sequence[int], preprocessing: Preprocessing, batch_size: int, batches: int, seed: int
) -> ImageBatches:
    """Up to `batches` full batches of randomly chosen images, in random crops; the same ones for the same seed.

    Raises InputError where the images do not fill one batch.
    """
    check_calibration(len(paths), batch_size)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(paths), generator=generator)[: batch_size * batches].tolist()
    files = ImageFiles([paths[i] for i in order], [labels[i] for i in order], preprocessing.augmentation(), seed)
    return ImageBatches(files, preprocessing, batch_size, drop_last=True)


def check_resize(resize: int | None) -> None:
    """InputError for a shorter side, before the crop, that no network is evaluated with."""
    if resize is not None and not 1 <= resize <= LARGEST_RESIZE:
        raise InputError(f"data.resize must be from 1 to {LARGEST_RESIZE} pixels, or null; got {resize!r}")


def check_calibration(count: int, batch_size: int) -> None:
    """InputError when the images do not fill one calibration batch."""
    if count < batch_size:
        raise InputError(
            f"calibration needs at least one batch of {batch_size} images and there are {count}; "
            "add images or lower calibration.batch_size"
        )
