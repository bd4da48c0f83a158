"""Classification: a network, its data, and what its predictions are worth."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsplit.answers import packed_answers
from bitsplit.errors import InputError
from bitsplit.networks.network import Network
from bitsplit.progress import progress
from bitsplit.settings import Layers
from bitsplit.statistics.memory import freed_memory_kept
from bitsplit.tasks.predictions import Predictions, kept_predictions

EVALUATION_PIXELS = 2**20  # a batch, so that one layer's feature maps stay in a CPU's cache


class Classification:
    """One network on one data set. A label below 0 means "unlabelled": such images have no accuracy.

    `data` offers name, title, domain, calibration(preprocessing, batch_size, batches, seed) and
    validation(preprocessing, batch_size); `source` is a model of `bitsplit.networks.classifiers`.
    """

    layers = Layers()  # the last layer called makes the prediction

    def __init__(self, source, data, device: torch.device):
        self.data, self.device = data, device
        self.title: str = data.title  # a folder that is missing or empty is found before any weights are loaded
        self.network: Network = source.load(data.domain)

    @cached_property
    def module(self) -> nn.Module:
        """The floating-point network on its device."""
        # On a CPU, depthwise convolutions are three times faster in this layout; results do not depend on it.
        return self.network.module.to(self.device, memory_format=torch.channels_last)

    def calibration(self, batch_size: int, batches: int, seed: int) -> Iterable:
        """Up to `batches` full batches of calibration images, the same ones each time they are iterated."""
        return self.data.calibration(self.network.preprocessing, batch_size, batches, seed)

    @cached_property
    def float_metrics(self) -> dict:
        """Metrics of the floating-point network."""
        logits, labels, skipped = self._float_predictions
        return metrics(logits, labels, logits, skipped)

    @cached_property
    def _float_predictions(self) -> Predictions:
        files = getattr(self._validation, "paths", ())
        return kept_predictions(
            self.network, self.data, files, self.device, lambda: self._predict(self.module, "floating point")
        )

    def evaluate(self, module: nn.Module, what: str = "evaluation") -> dict:
        """Metrics of `module` on the validation images, also against the floating-point network."""
        logits, labels, skipped = self._predict(module, what)
        return metrics(logits, labels, self._float_predictions[0], skipped)

    def files(self, calibration: Iterable) -> list[Path]:
        """The files that the numbers depend on, those of the calibration batches first; none of drawn data."""
        return [path for batches in (calibration, self._validation) for path in getattr(batches, "paths", ())]

    @cached_property
    def _validation(self) -> Iterable:
        preprocessing = self.network.preprocessing
        return self.data.validation(preprocessing, EVALUATION_PIXELS // preprocessing.crop**2)

    @freed_memory_kept()
    @torch.inference_mode()
    def _predict(self, module: nn.Module, what: str) -> Predictions:
        batches = self._validation
        logits, labels = [], []
        for images, batch_labels in progress(batches, what):
            logits.append(module(images.to(self.device, memory_format=torch.channels_last)).float().cpu())
            labels.append(batch_labels)
        if not logits:
            raise InputError("none of the validation images can be read")
        logits = torch.cat(logits)
        if not logits.isfinite().all():
            raise InputError(f"the {what} network's output holds NaN or infinity on the validation images")
        return logits, torch.cat(labels), len(getattr(batches, "skipped", ()))


def metrics(logits: Tensor, labels: Tensor, reference: Tensor, skipped: int) -> dict:
    """Percentages top1 and top5 (None without labels), agreement of the top-1 class with the reference network's, the
    logits' signal-to-noise ratio in dB against the reference (None where they are equal), counts of images and, with
    labels, which of them are right (`packed_answers`)."""
    top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = (top5 == labels.unsqueeze(1)).double()
    labelled = bool((labels >= 0).all())
    noise = functional.mse_loss(logits.double(), reference.double())
    return {
        "top1": round(100 * hits[:, 0].mean().item(), 4) if labelled else None,
        "top5": round(100 * hits.any(dim=1).double().mean().item(), 4) if labelled else None,
        "agreement": round(100 * (top5[:, 0] == reference.argmax(dim=1)).double().mean().item(), 4),
        "logits_snr_db": round(10 * torch.log10(reference.double().square().mean() / noise).item(), 3)
        if noise > 0
        else None,
        "images": len(labels),
        "skipped": skipped,
        **({"correct": packed_answers(hits[:, 0].bool().numpy())} if labelled else {}),
    }
