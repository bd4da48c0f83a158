"""Picture files on disk: decoding, the usual transforms, and damaged files named and counted, never a crash mid-run."""

import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bitsplit.errors import InputError

_MEMORY = 2**30  # bytes of decoded pictures that are kept
# Said outright: inside joblib's workers the default is a method of its own, in which no further process can start.
_START_METHOD = "fork" if sys.platform == "linux" else "spawn"
EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"])


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of a picture: mean and std per channel on the 0..1 scale, and sizes in pixels."""

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
        from bitsplit.vision import transforms as v2

        unit = v2.functional.to_dtype(images, torch.float32, scale=True)
        return v2.functional.normalize(unit, list(self.mean), list(self.std), inplace=True)


class PictureFiles(Dataset):
    """Pictures and their labels. A file that cannot be decoded gives its path in the place of the picture.

    Random transforms draw from a stream fixed by (seed, index), whatever process loads the picture.
    """

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], transform: Callable, seed: int = 0):
        self._paths, self._labels, self._transform, self._seed = paths, labels, transform, seed

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, str]:
        path = self._paths[index]
        try:
            with Image.open(path) as file:
                picture = file.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None, -1, str(path)
        with torch.random.fork_rng(devices=[]):
            # Hashed together: torch's CPU generator reads only the low 32 bits of its seed.
            torch.manual_seed(zlib.crc32(f"{self._seed}/{index}".encode()))
            return self._transform(picture), self._labels[index], ""


class PictureBatches:
    """Batches (images (N, 3, H, W), labels (N,)) of picture files, in a fixed order, as often as asked for.

    Pictures that fit in memory are decoded once. `skipped` holds the damaged files met so far; each is named on stderr
    once.
    """

    def __init__(self, files: PictureFiles, preprocessing: Preprocessing, batch_size: int, drop_last: bool = False):
        self.batch_size = batch_size
        self.skipped: set[str] = set()
        self._preprocessing = preprocessing
        self._fit_in_memory = len(files) * 3 * preprocessing.crop**2 <= _MEMORY
        self._decoded: list[tuple[Tensor, Tensor]] | None = None
        self._loader = DataLoader(
            files,
            batch_size,
            num_workers=min(available_cores(), 8),
            drop_last=drop_last,
            collate_fn=_readable_only,
            multiprocessing_context=_START_METHOD,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        decoded = []
        for images, labels in self._decoded or self._decode():
            if self._fit_in_memory:
                decoded.append((images, labels))
            yield self._preprocessing.normalise(images), labels
        self._decoded = decoded or None  # not reached by a reader that stops early

    def _decode(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels, damaged in self._loader:
            for path in sorted(set(damaged) - self.skipped):
                print(f"warning: skipped {path}: not a readable picture", file=sys.stderr)
            self.skipped.update(damaged)
            if len(labels):
                yield images, labels


def _readable_only(samples: list[tuple[Tensor | None, int, str]]) -> tuple[Tensor, Tensor, list[str]]:
    readable = [(picture, label) for picture, label, _ in samples if picture is not None]
    damaged = [path for _, _, path in samples if path]
    if not readable:
        return torch.empty(0), torch.empty(0, dtype=torch.int64), damaged
    images, labels = zip(*readable, strict=True)
    return torch.stack(images), torch.tensor(labels), damaged


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def picture_paths(folder: Path) -> list[Path]:
    """All picture files under `folder`, sorted; InputError when it is no folder or holds none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the pictures' folder with data.root=PATH")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not paths:
        raise InputError(f"{folder} holds no pictures ({', '.join(sorted(EXTENSIONS))})")
    return paths


def calibration_order(count: int, wanted: int, seed: int) -> list[int]:
    """Indices of the `wanted` calibration pictures among `count`, a random sample without repetition."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:wanted].tolist()


def check_calibration(count: int, batch_size: int) -> None:
    """InputError when the pictures do not fill one calibration batch."""
    if count < batch_size:
        raise InputError(
            f"calibration needs at least one batch of {batch_size} pictures and there are {count}; "
            "add pictures or lower calibration.batch_size"
        )
