"""Calibration images as often as they are needed, in batches and in pieces of them."""

import itertools
import math
from collections.abc import Iterable, Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from bitsplit.errors import InputError
from bitsplit.settings import Calibration, Settings
from bitsplit.statistics.readings import Readings, first_images, images_of, repeatable

_PIECE_PIXELS = 2**20
_LEAST_BATCH = 16  # images; with 8, activation scales from batches normalised by themselves cost several times as much


class CalibrationBatches:
    """Calibration images as often as they are needed, labels dropped, where and how the network's weights lie.

    `source` yields batches (N, C, H, W) or (images, anything), in each reading the same: what it draws, it draws from
    `seed`. Of a source that can be read only once, or whose length is unknown, `most_batches` are kept in memory. What
    settings count in batches are batches of `batch_size` images: of smaller ones more are read. Raises InputError where
    there is no batch.
    """

    def __init__(
        self,
        source: Iterable,
        network: nn.Module,
        batch_size: int = Calibration().batch_size,
        most_batches: int = Settings().most_batches,
        seed: int = 0,
    ):
        if not isinstance(source, Iterable) or isinstance(source, Tensor):
            raise InputError(
                f"calibration must be an iterable of image batches, a list say; got {type(source).__name__}"
            )
        self._batch_size = getattr(source, "whole_batch", batch_size)
        if not repeatable(source):
            source = list(first_images(Readings(source, seed), most_batches * self._batch_size))
        if len(source) == 0:
            raise InputError("calibration is empty: give at least one batch of images")
        self._source, self._readings = source, Readings(source, seed)
        self._device, self._layout, self._dtype = _placement(network)

    def __len__(self) -> int:
        return len(self._source)

    @cached_property
    def own_size(self) -> int:
        """Images in a batch as the source has it."""
        said = getattr(self._source, "batch_size", None)
        return said if isinstance(said, int) and len(self) > 1 else len(next(self.first(1)))

    @property
    def small(self) -> bool:
        """Whether a batch is too small for batch-norm statistics of its own."""
        return self.own_size < min(_LEAST_BATCH, self._batch_size)

    @property
    def whole(self) -> int:
        """How many batches of the settings' size the images make, a larger one counted as one; none of small ones."""
        return 0 if self.small else len(self) * min(self.own_size, self._batch_size) // self._batch_size

    def count(self, limit: int) -> int:
        """How many of the source's batches to read where the settings say `limit`."""
        return min(len(self), math.ceil(limit * max(1, self._batch_size / self.own_size)))

    def first_piece(self) -> Tensor:
        """So many of the first batch's images as `pieces` makes a piece of."""
        return next(pieces(self.first(1)))[0]

    def first(self, limit: int) -> Iterator[Tensor]:
        """The first `limit` batches, or as many as there are, without a single image that is left after larger ones: it
        has no batch-norm statistics of its own. Raises InputError where they are none, or no images."""
        largest = 0
        for batch in itertools.islice(self._readings, limit):
            images = images_of(batch)
            if not isinstance(images, Tensor):
                raise InputError(
                    "calibration must yield image batches or (images, anything) tuples; "
                    f"got an element of type {type(images).__name__}"
                )
            if len(images) == 0 or not images.is_floating_point():
                raise InputError(
                    f"calibration must yield images in floating point; got {tuple(images.shape)} in {images.dtype}"
                )
            if len(images) == 1 < largest:
                continue
            largest = max(largest, len(images))
            layout = self._layout if images.dim() == 4 else torch.preserve_format
            # A copy, always: a network that normalises its input in place must not reach the caller's images.
            yield images.to(self._device, self._dtype, memory_format=layout, copy=True)
        if not largest:
            raise InputError("calibration gave no batch when it was read again: give a list of batches or a DataLoader")


def _placement(network: nn.Module) -> tuple[torch.device, torch.memory_format, torch.dtype]:
    """The device, the memory layout and the type of the network's weights, which its input should have too."""
    weights = [*network.parameters(), *network.buffers()]
    channels_last = any(w.dim() == 4 and not w.is_contiguous() for w in weights)
    device = weights[0].device if weights else torch.device("cpu")
    dtype = next((w.dtype for w in weights if w.is_floating_point()), torch.get_default_dtype())
    return device, torch.channels_last if channels_last else torch.preserve_format, dtype


def pieces(batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, float]]:
    """Pieces of the batches, each with its share of its batch.

    On a CPU a piece is so small that its feature maps stay in the cache: about twice as fast at 224×224.
    """
    for batch in batches:
        size = len(batch)
        if batch.dim() == 4 and batch.device.type == "cpu":
            size = max(1, _PIECE_PIXELS // (batch.shape[2] * batch.shape[3]))
        for piece in batch.split(size):
            yield piece, len(piece) / len(batch)
