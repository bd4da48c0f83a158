"""Calibration pictures as often as they are needed, and the label-free loss on them."""

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsplit.errors import InputError
from bitsplit.stats import pieces


def repeatable(source: Iterable) -> Iterable:
    """`source`, or its batches in a list where it can be read only once or does not know its length.

    Raises InputError when there are none.
    """
    batches = source if hasattr(source, "__len__") and iter(source) is not source else list(source)
    if len(batches) == 0:
        raise InputError("calibration is empty: give at least one batch of images")
    return batches


class CalibrationBatches:
    """Calibration images as often as they are needed, labels dropped, where and how the network's weights lie.

    `source` yields batches (N, C, H, W) or (images, anything). A source that can be read only once, or whose length is
    unknown, is kept in memory.
    """

    def __init__(self, source: Iterable, network: nn.Module):
        self._source = repeatable(source)
        self._device, self._layout = _placement(network)

    def __len__(self) -> int:
        return len(self._source)

    def count(self, limit: int) -> int:
        return min(len(self), limit)

    def first(self, limit: int) -> Iterator[Tensor]:
        for batch in itertools.islice(self._source, limit):
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not isinstance(images, Tensor):
                raise InputError(
                    "calibration must yield image batches or (images, anything) tuples; "
                    f"got an element of type {type(images).__name__}"
                )
            yield images.to(self._device, memory_format=self._layout if images.dim() == 4 else torch.preserve_format)


class CalibrationLoss:
    """Cross-entropy of the quantized network against the floating-point one's predictions, without labels."""

    def __init__(self, floating_point: nn.Module, quantized: nn.Module, batches: CalibrationBatches):
        self._floating_point, self._quantized, self._batches = floating_point, quantized, batches
        self._targets: dict[int, list[tuple[Tensor, Tensor]]] = {}

    @torch.inference_mode()
    def __call__(self, images: int) -> float:
        """The mean over the first `images` calibration pictures, the same at each call."""
        if images not in self._targets:
            self._targets[images] = self._predictions(images)
        targets = self._targets[images]
        total = sum(functional.cross_entropy(self._quantized(x), y, reduction="sum").item() for x, y in targets)
        return total / sum(len(x) for x, _ in targets)

    def _predictions(self, images: int) -> list[tuple[Tensor, Tensor]]:
        targets = []
        for piece, _ in pieces(self._batches.first(len(self._batches))):
            piece = piece[: images - sum(len(x) for x, _ in targets)]
            if len(piece) == 0:
                break
            logits = self._floating_point(piece)
            if not isinstance(logits, Tensor) or logits.dim() != 2:
                raise InputError("this method needs a network that returns logits (images, classes)")
            targets.append((piece, logits.softmax(dim=1)))
        return targets


def _placement(network: nn.Module) -> tuple[torch.device, torch.memory_format]:
    """The device and the memory layout of the network's weights, which its input should have too."""
    weights = [*network.parameters(), *network.buffers()]
    channels_last = any(w.dim() == 4 and not w.is_contiguous() for w in weights)
    device = weights[0].device if weights else torch.device("cpu")
    return device, torch.channels_last if channels_last else torch.preserve_format
