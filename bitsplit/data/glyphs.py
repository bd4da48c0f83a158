"""The embedded data set `glyphs`: 100 classes of characters, drawn on first use and cached in shards."""

import contextlib
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from bitsplit.data import glyph_drawing
from bitsplit.data.drawn import check_count, draw_on_all_cores, drawing_identity, kept_in
from bitsplit.data.images import Preprocessing, check_calibration
from bitsplit.files import cache_root
from bitsplit.kept import store_file, stored_file

TRAINING_IMAGES, VALIDATION_IMAGES = 30_000, 10_000
SHARD = 2000  # images per file
CHUNK = 100  # images per job of the process pool, small so that one shard keeps every core busy
_SHAPE = (glyph_drawing.GLYPH_SIZE, glyph_drawing.GLYPH_SIZE, 3)

_IDENTITY = drawing_identity(glyph_drawing.__file__)


def glyphs_folder(cache_dir: str | Path | None = None) -> Path:
    """Folder of the shards, named after the drawing code and its libraries, so a stale cache is never read."""
    return Path(cache_dir or cache_root()) / f"glyphs-{_IDENTITY}"


def load_glyphs(split: str, count: int, cache_dir: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images of a split: images uint8 (count,64,64,3) and labels int64 (count,).

    Missing shards are drawn whole on all cores and kept under `cache_dir` (`cache_root()` if None).
    """
    folder = glyphs_folder(cache_dir)
    images = np.empty((count, *_SHAPE), dtype=np.uint8)
    missing = []
    for shard in range(-(-count // SHARD)):
        if path := stored_file(folder, _stem(split, shard), ".npy"):
            _fill(images, shard, np.load(path, mmap_mode="r"))
        else:
            missing.append(shard)
    for shard, pixels in _draw_shards(split, missing):
        _fill(images, shard, pixels)
        with kept_in(folder):
            store_file(folder, _stem(split, shard), ".npy", functools.partial(_write_shard, pixels=pixels))
    labels = np.array([glyph_drawing.label(split, index) for index in range(count)], dtype=np.int64)
    return images, labels


def _stem(split: str, shard: int) -> str:
    return f"{split}-{shard:05d}"


def _fill(images: np.ndarray, shard: int, pixels: np.ndarray) -> None:
    part = images[shard * SHARD : (shard + 1) * SHARD]
    part[:] = pixels[: len(part)]


def _write_shard(path: Path, pixels: np.ndarray) -> None:
    with path.open("wb") as file:  # under its own name, to which `np.save` adds
        np.save(file, pixels)


def _draw_shards(split: str, shards: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (shard, its pixels) in order, drawn on all cores."""
    jobs = [(split, start) for shard in shards for start in range(shard * SHARD, (shard + 1) * SHARD, CHUNK)]
    chunks = draw_on_all_cores(_draw_chunk, jobs, f"glyphs ({split})", "image", len(shards) * SHARD)
    with contextlib.closing(chunks):
        for shard in shards:
            yield shard, np.concatenate(list(itertools.islice(chunks, SHARD // CHUNK)))


def _draw_chunk(job: tuple[str, int]) -> np.ndarray:
    split, start = job
    return np.stack([glyph_drawing.draw_glyph(split, index) for index in range(start, start + CHUNK)])


@dataclass(frozen=True)
class Glyphs:
    """The first `validation_images` for validation, of 10,000; calibration takes the first training images, which the
    networks were trained on."""

    validation_images: int = VALIDATION_IMAGES

    task = "classification"
    domain = "glyphs"
    name = "glyphs"

    def __post_init__(self) -> None:
        check_count("validation_images", self.validation_images, VALIDATION_IMAGES)

    @property
    def title(self) -> str:
        return f"glyphs validation, {self.validation_images:,} images"

    def calibration(self, preprocessing: Preprocessing, batch_size: int, batches: int, seed: int) -> "GlyphBatches":
        check_calibration(TRAINING_IMAGES, batch_size)
        size = min(batches, TRAINING_IMAGES // batch_size) * batch_size
        order = np.random.default_rng(seed).permutation(size)
        return GlyphBatches("train", order, preprocessing, batch_size)

    def validation(self, preprocessing: Preprocessing, batch_size: int) -> "GlyphBatches":
        return GlyphBatches("val", np.arange(self.validation_images), preprocessing, batch_size)


class GlyphBatches:
    """Batches (images (N, 3, 64, 64), labels (N,)) of the first so many of a split, in the order of `order`.

    They are drawn, or read from the cache, when the first batch is asked for.
    """

    def __init__(self, split: str, order: np.ndarray, preprocessing: Preprocessing, batch_size: int):
        self._split, self._order, self._preprocessing, self.batch_size = split, order, preprocessing, batch_size

    def __len__(self) -> int:
        return -(-len(self._order) // self.batch_size)

    @cached_property
    def _images(self) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = load_glyphs(self._split, len(self._order))
        return torch.from_numpy(images[self._order]).permute(0, 3, 1, 2), torch.from_numpy(labels[self._order])

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        images, labels = self._images
        for batch, target in zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True):
            yield self._preprocessing.normalise(batch.contiguous()), target
