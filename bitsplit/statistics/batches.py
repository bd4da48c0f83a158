"""Calibration images as often as they are needed, in batches and in pieces of them."""

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from bitsplit.errors import InputError

_PIECE_PIXELS = 2**20


class CalibrationBatches:
    """Calibration images as often as they are needed, labels dropped, where and how the network's weights lie.

    `source` yields batches (N, C, H, W) or (images, anything). A source that can be read only once, or whose length is
    unknown, is kept in memory. Raises InputError where there is no batch.
    """

    def __init__(self, source: Iterable, network: nn.Module):
        if not isinstance(source, Iterable):
            raise InputError(f"calibration must be an iterable of image batches, got {type(source).__name__}")
        repeatable = hasattr(source, "__len__") and iter(source) is not source
        self._source = source if repeatable else list(source)
        if len(self._source) == 0:
            raise InputError("calibration is empty: give at least one batch of images")
        self._device, self._layout = _placement(network)

    def __len__(self) -> int:
        return len(self._source)

    def count(self, limit: int) -> int:
        return min(len(self), limit)

    def first_piece(self) -> Tensor:
        """So many of the first batch's images as `pieces` makes a piece of."""
        return next(pieces(self.first(1)))[0]

    def first(self, limit: int) -> Iterator[Tensor]:
        """The first `limit` batches, or as many as there are. Raises InputError where they are none, or no images."""
        empty = True
        for batch in itertools.islice(self._source, limit):
            empty = False
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not isinstance(images, Tensor):
                raise InputError(
                    "calibration must yield image batches or (images, anything) tuples; "
                    f"got an element of type {type(images).__name__}"
                )
            if len(images) == 0 or not images.is_floating_point():
                raise InputError(
                    f"calibration must yield images in floating point; got {tuple(images.shape)} in {images.dtype}"
                )
            layout = self._layout if images.dim() == 4 else torch.preserve_format
            # A copy, always: a network that normalises its input in place must not reach the caller's images.
            yield images.to(self._device, memory_format=layout, copy=True)
        if empty:
            raise InputError("calibration gave no batch when it was read again: give a list of batches or a DataLoader")


def _placement(network: nn.Module) -> tuple[torch.device, torch.memory_format]:
    """The device and the memory layout of the network's weights, which its input should have too."""
    weights = [*network.parameters(), *network.buffers()]
    channels_last = any(w.dim() == 4 and not w.is_contiguous() for w in weights)
    device = weights[0].device if weights else torch.device("cpu")
    return device, torch.channels_last if channels_last else torch.preserve_format


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
