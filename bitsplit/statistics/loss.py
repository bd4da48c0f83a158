"""The label-free loss of a quantized network on the calibration images."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsplit.errors import InputError
from bitsplit.statistics.batches import CalibrationBatches, pieces


class CalibrationLoss:
    """Cross-entropy of the quantized network against the floating-point one's predictions, without labels."""

    def __init__(self, floating_point: nn.Module, quantized: nn.Module, batches: CalibrationBatches):
        self._floating_point, self._quantized, self._batches = floating_point, quantized, batches
        self._targets: dict[int, list[tuple[Tensor, Tensor]]] = {}

    @torch.inference_mode()
    def __call__(self, images: int) -> float:
        """The mean over the first `images` calibration images, the same at each call."""
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
