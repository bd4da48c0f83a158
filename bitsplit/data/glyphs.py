"""The embedded data set `glyphs`: 100 classes of characters, drawn on first use and cached in shards."""

import hashlib
import multiprocessing
import os
import signal
import uuid
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import matplotlib
import numpy as np
import PIL
import torch
from tqdm import tqdm

from bitsplit.cache import cache_root
from bitsplit.data import glyph_drawing
from bitsplit.data.pictures import Preprocessing, available_cores, check_calibration

TRAINING_PICTURES = 30_000
SHARD = 2000  # pictures per file
CHUNK = 100  # pictures per job of the process pool, small so that one shard keeps every core busy
PICTURE = (glyph_drawing.SIZE, glyph_drawing.SIZE, 3)

# Everything that the pixels depend on. Taken at import, when the source on disk is still the code that draws.
_IDENTITY = hashlib.sha256(
    Path(glyph_drawing.__file__).read_bytes()
    + f"pillow {PIL.__version__} matplotlib {matplotlib.__version__} numpy {np.__version__}".encode()
).hexdigest()[:16]


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Folder of the shards, named after the drawing code and its libraries, so a stale cache is never read."""
    return Path(cache_dir or cache_root()) / f"glyphs-{_IDENTITY}"


def shard_path(folder: Path, split: str, shard: int) -> Path:
    return folder / f"{split}-{shard:05d}.npy"


def pictures(split: str, count: int, cache_dir: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` pictures of a split: images uint8 (count,64,64,3) and labels int64 (count,).

    Missing shards are drawn whole on all cores and kept under `cache_dir` (`cache_root()` if None).
    """
    folder = cache_folder(cache_dir)
    images = np.empty((count, *PICTURE), dtype=np.uint8)
    missing = []
    for shard in range(-(-count // SHARD)):
        if (pixels := _read(shard_path(folder, split, shard))) is None:
            missing.append(shard)
        else:
            _fill(images, shard, pixels)
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        for shard, pixels in _draw_shards(split, missing):
            _write(shard_path(folder, split, shard), pixels)
            _fill(images, shard, pixels)
    labels = np.array([glyph_drawing.label(split, index) for index in range(count)], dtype=np.int64)
    return images, labels


def _fill(images: np.ndarray, shard: int, pixels: np.ndarray) -> None:
    part = images[shard * SHARD : (shard + 1) * SHARD]
    part[:] = pixels[: len(part)]


def _read(path: Path) -> np.ndarray | None:
    """Pixels (2000,64,64,3) of a shard, or None if it is absent or damaged."""
    try:
        with path.open("rb") as file:
            pixels = np.load(file)
            checksum = file.read()
    except (OSError, ValueError, EOFError):
        return None
    intact = pixels.shape == (SHARD, *PICTURE) and pixels.dtype == np.uint8 and checksum == _checksum(pixels)
    return pixels if intact else None


def _write(path: Path, pixels: np.ndarray) -> None:
    """Writes a shard under a temporary name and renames it: no reader and no second writer ever sees half a file."""
    temporary = path.with_name(f"{path.stem}-{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            np.save(file, pixels)
            file.write(_checksum(pixels))  # behind the array, where np.load does not look
        os.replace(temporary, path)
    finally:  # after an interrupt too
        temporary.unlink(missing_ok=True)


def _checksum(pixels: np.ndarray) -> bytes:
    return zlib.crc32(pixels).to_bytes(4, "little")


def _draw_shards(split: str, shards: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (shard, its pixels) in order, drawn by a process pool under one progress bar."""
    jobs = [(split, start) for shard in shards for start in range(shard * SHARD, (shard + 1) * SHARD, CHUNK)]
    # A forked worker does not import the caller's script again, so a script needs no `__main__` guard.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(available_cores(), context, initializer=_leave_interrupts_to_parent)
    try:
        chunks = pool.map(_draw_chunk, jobs)
        with tqdm(
            total=len(shards) * SHARD, desc=f"drawing glyphs ({split})", unit="picture", disable=None
        ) as progress:
            for shard in shards:
                pixels = np.empty((SHARD, *PICTURE), dtype=np.uint8)
                for start in range(0, SHARD, CHUNK):
                    pixels[start : start + CHUNK] = next(chunks)
                    progress.update(CHUNK)
                yield shard, pixels
    finally:
        pool.shutdown(cancel_futures=True)


def _draw_chunk(job: tuple[str, int]) -> np.ndarray:
    split, start = job
    return np.stack([glyph_drawing.draw(split, index) for index in range(start, start + CHUNK)])


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class Glyphs:
    """10,000 validation pictures; calibration takes the first training pictures, which the networks were trained on."""

    validation_pictures: int = 10_000

    task = "classification"
    domain = "glyphs"
    name = "glyphs"

    @property
    def title(self) -> str:
        return f"glyphs validation, {self.validation_pictures:,} pictures"

    def calibration(self, preprocessing: Preprocessing, batch_size: int, batches: int, seed: int) -> "GlyphBatches":
        check_calibration(TRAINING_PICTURES, batch_size)
        wanted = min(batches, TRAINING_PICTURES // batch_size) * batch_size
        order = np.random.default_rng(seed).permutation(wanted)
        return GlyphBatches("train", order, preprocessing, batch_size)

    def validation(self, preprocessing: Preprocessing, batch_size: int) -> "GlyphBatches":
        return GlyphBatches("val", np.arange(self.validation_pictures), preprocessing, batch_size)


class GlyphBatches:
    """Batches (images (N, 3, 64, 64), labels (N,)) of the first pictures of a split, in the given order.

    They are drawn, or read from the cache, when the first batch is asked for.
    """

    def __init__(self, split: str, order: np.ndarray, preprocessing: Preprocessing, batch_size: int):
        self._split, self._order, self._preprocessing, self.batch_size = split, order, preprocessing, batch_size

    def __len__(self) -> int:
        return -(-len(self._order) // self.batch_size)

    @cached_property
    def _pictures(self) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = pictures(self._split, len(self._order))
        return torch.from_numpy(images[self._order]).permute(0, 3, 1, 2), torch.from_numpy(labels[self._order])

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        images, labels = self._pictures
        for batch, target in zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True):
            yield self._preprocessing.normalise(batch.contiguous()), target
