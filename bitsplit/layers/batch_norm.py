"""Batch-norm statistics of a network: measured, re-estimated, moved and replaced, without labels or gradients."""

import collections
import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bitsplit.errors import InputError
from bitsplit.layers.inputs import CallQuantizers
from bitsplit.progress import progress
from bitsplit.settings import BatchNorm

# Of a channel's variance: rounding has left less of it, and dividing by that would enlarge what is there by chance.
_SILENCED = 1e-2

BatchNormStatistics = dict[str, tuple[Tensor, Tensor]]


def batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """Batch-norm layers that keep running statistics, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.running_mean is not None
    }


def norms_by_mean(network: nn.Module) -> dict[int, str]:
    """Names of the batch-norm layers by the identity of their running means, which a call of `F.batch_norm` shows."""
    return {id(norm.running_mean): name for name, norm in batch_norms(network).items()}


@dataclass(frozen=True)
class FloatNorms:
    """Batch-norm of the floating-point network: its trained statistics, and those measured on calibration images."""

    trained: BatchNormStatistics
    measured: BatchNormStatistics


def measure_float_norms(
    network: nn.Module, settings: BatchNorm, batches: Iterable[Tensor], total: int
) -> FloatNorms | None:
    """What `refit_batch_norm` needs of the floating-point network: nothing, but for the mode "shift"."""
    if settings.mode != "shift" or not batch_norms(network):
        return None
    return FloatNorms(batch_norm_statistics(network), measure_batch_norm(network, batches, total))


def refit_batch_norm(
    network: nn.Module, settings: BatchNorm, batches: Iterable[Tensor], total: int, float_norms: FloatNorms | None
) -> None:
    """Batch-norm statistics that fit the quantized network, by the mode in `settings`, in place."""
    if settings.mode == "none" or not batch_norms(network):
        return
    if settings.mode == "reestimate":
        reestimate_batch_norm(network, batches, total, settings.momentum)
    else:
        measured = measure_batch_norm(network, batches, total)
        set_batch_norm(network, shifted_batch_norm(float_norms.trained, float_norms.measured, measured))


@torch.no_grad()
def reestimate_batch_norm(network: nn.Module, batches: Iterable[Tensor], total: int, momentum: float | None) -> None:
    """Runs `batches` through the network with only its batch-norm layers in train mode.

    Running statistics move by `momentum` a batch, or become the plain average over all batches where it is None.
    No labels, no gradients; every layer's mode and momentum are as before afterwards.
    """
    cut = _CutAfterNorms(network)
    with norms_in_training(network, momentum):
        if momentum is None:
            for norm in batch_norms(network).values():
                if norm.training:  # a frozen one, whose `train` does nothing, goes on using its own
                    norm.reset_running_stats()
        for images in progress(batches, "batch-norm", total=total):
            with contextlib.suppress(_NormsDone), cut:
                network(images)


@contextlib.contextmanager
def norms_in_training(network: nn.Module, momentum: float | None) -> Iterator[None]:
    """Batch-norm layers, they alone, normalise each batch by its own statistics, and their running ones move by
    `momentum`; every layer's mode and momentum are as before afterwards."""
    norms = batch_norms(network).values()
    before = [(norm.training, norm.momentum) for norm in norms]
    try:
        for norm in norms:
            norm.train()
            norm.momentum = momentum
        yield
    except ValueError as error:
        if "value per channel" not in str(error):  # torch's own, where a channel has a single one in a batch
            raise
        raise InputError(f"batch-norm re-estimation: {error}; use larger batches or mode none") from error
    finally:
        for norm, (training, old_momentum) in zip(norms, before, strict=True):
            norm.train(training)
            norm.momentum = old_momentum


class _NormsDone(BaseException):
    """Thrown out of a forward whose rest has no batch-norm layer; no `except Exception` in a network catches it."""


class _CutAfterNorms:
    """Ends each forward inside it once every batch-norm layer has run: a detector's heads cost ten times its backbone.

    Only where the first forward, a whole one, calls each exactly once; else forwards run whole.
    """

    def __init__(self, network: nn.Module):
        self._norms, self._calls, self._once = list(batch_norms(network).values()), collections.Counter(), None
        self._interrupted = [module for module in network.modules() if isinstance(module, CallQuantizers)]

    def __enter__(self) -> None:
        self._calls.clear()
        self._hooks = [norm.register_forward_hook(self._count) for norm in self._norms]

    def __exit__(self, *exception) -> None:
        for hook in self._hooks:
            hook.remove()
        for quantizers in self._interrupted:
            quantizers.restart()
        if self._once is None:
            self._once = all(self._calls[id(norm)] == 1 for norm in self._norms)

    def _count(self, norm: _BatchNorm, *_) -> None:
        self._calls[id(norm)] += 1
        if self._once and len(self._calls) == len(self._norms):
            raise _NormsDone


def measure_batch_norm(network: nn.Module, batches: Iterable[Tensor], total: int) -> BatchNormStatistics:
    """Mean and variance (each (C,)) of every batch-norm layer's input, averaged over `batches`; changes nothing."""
    before = batch_norm_statistics(network)
    counts = [(norm, norm.num_batches_tracked.clone()) for norm in batch_norms(network).values()]
    reestimate_batch_norm(network, batches, total, momentum=None)
    measured = batch_norm_statistics(network)
    set_batch_norm(network, before)
    for norm, count in counts:
        norm.num_batches_tracked.copy_(count)
    return measured


def batch_norm_statistics(network: nn.Module) -> BatchNormStatistics:
    """The running statistics of the network's batch-norm layers, copied."""
    return {name: (norm.running_mean.clone(), norm.running_var.clone()) for name, norm in batch_norms(network).items()}


def set_batch_norm(network: nn.Module, statistics: BatchNormStatistics) -> None:
    """Makes `statistics` the running statistics of the network's batch-norm layers."""
    for name, norm in batch_norms(network).items():
        mean, variance = statistics[name]
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def shifted_batch_norm(
    trained: BatchNormStatistics, floating_point: BatchNormStatistics, quantized: BatchNormStatistics
) -> BatchNormStatistics:
    """The trained statistics moved by what quantization changes on the same images.

    Means move by the difference, variances by the ratio, which keeps them positive, but for channels that rounding has
    silenced. Images that differ from the training set's (few, or compressed again) so cannot pull the statistics away
    by themselves.
    """
    shifted = {}
    for name, (mean, variance) in trained.items():
        ratio = (quantized[name][1] + 1e-12) / (floating_point[name][1] + 1e-12)
        ratio = torch.where(ratio < _SILENCED, 1, ratio)
        shifted[name] = mean + quantized[name][0] - floating_point[name][0], variance * ratio
    return shifted
