"""Quantized layers put in place in any network, and the batch-norm statistics that go with them."""

import collections
import contextlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bitsplit import kernels
from bitsplit.errors import InputError
from bitsplit.grid import Grid
from bitsplit.layout import grouped, ungrouped
from bitsplit.progress import progress


class InputQuantizer(nn.Module):
    """Rounds a layer's input to `grid`, with one scale () for the whole tensor or one for each channel (C,).

    `positions` is the number of dimensions behind the channels': 2 for a convolution's input, 0 for a linear layer's.
    """

    def __init__(self, grid: Grid, scale: Tensor, positions: int = 0):
        super().__init__()
        self.signed = grid.signed
        by_channel = (-1, *[1] * positions)
        if isinstance(grid.bits, Tensor):
            self.register_buffer("bits", grid.bits.reshape(by_channel))
        else:
            self.bits = grid.bits
        self.register_buffer("scale", scale.detach().float().reshape(by_channel if scale.dim() else ()))

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, self.signed)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.grid
        if x.device.type == "cpu" and x.dtype == torch.float32 and self.scale.dim() == 0 and not x.requires_grad:
            return kernels.fake_quantize(x, self.scale.item(), grid.low, grid.high)
        # Scales by channel are in single precision and would take a half-precision input with them.
        return grid.quantize(x, self.scale).mul_(self.scale).to(x.dtype)

    def extra_repr(self) -> str:
        bits = f"mean {self.bits.mean().item():.3g}" if isinstance(self.bits, Tensor) else self.bits
        scale = f"{self.scale.item():.4g}" if self.scale.numel() == 1 else f"{self.scale.numel()} channels"
        return f"bits={bits}, signed={self.signed}, scale={scale}"


class CallQuantizers(nn.ModuleList):
    """The `InputQuantizer` of each call of one layer, in the order of its calls in a forward.

    A layer that is applied to all levels of a pyramid reads tensors of very different ranges; each is a tensor of its
    own, with a scale of its own. The network must call the layer as often in every forward as in calibration; after a
    forward that did not end, `restart` or the network's `eval` makes the next call the first again.
    """

    def __init__(self, quantizers: Iterable[InputQuantizer]):
        super().__init__(quantizers)
        self.restart()

    def restart(self) -> None:
        self._call = 0

    def train(self, mode: bool = True) -> "CallQuantizers":
        self.restart()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        quantizer, self._call = self[self._call], (self._call + 1) % len(self)
        return quantizer(x)


class QuantizedLayer(nn.Module):
    """A convolution, transposed or not, or a linear layer with integer weights, a quantized input, or both.

    `layer` is the original module with the dequantized weight, scale · codes + offset, in the place of its parameter,
    so that its own forward, whatever it does, runs unchanged. codes int8 has the weight's shape, scale and offset one
    number for each of its rows (`layout`), (G · M,), in the weight's dtype; they are None where the weights stay in
    floating point (offset also where the method has none), as `input_quantizer` is where the input does. Other
    attributes are those of `layer`.
    """

    def __init__(
        self,
        layer: nn.Module,
        codes: Tensor | None = None,
        scale: Tensor | None = None,
        offset: Tensor | None = None,
    ):
        super().__init__()
        self.register_buffer("codes", None)
        self.register_buffer("scale", None)
        self.register_buffer("offset", None)
        self.layer = layer
        self.input_quantizer: InputQuantizer | CallQuantizers | None = None
        if codes is not None:
            weight = layer.weight
            del layer.weight
            layer.register_buffer("weight", torch.empty_like(weight, requires_grad=False), persistent=False)
            self.put(codes, scale, offset)

    def put(self, codes: Tensor, scale: Tensor, offset: Tensor | None) -> None:
        """Replaces the integer weights: codes (G, M, N), scale and offset (G, M)."""
        weight = self.layer.weight
        self.codes = ungrouped(codes.to(torch.int8), self.layer).contiguous()
        self.scale, self.offset = (
            given if given is None else given.detach().reshape(-1).to(weight.dtype) for given in (scale, offset)
        )
        self._dequantize()

    def _dequantize(self) -> None:
        codes = grouped(self.codes, self.layer).to(self.scale.dtype)
        rows = (*codes.shape[:2], 1)
        weight = codes * self.scale.reshape(rows)
        if self.offset is not None:
            weight = weight + self.offset.reshape(rows)
        with torch.no_grad():
            self.layer.weight.copy_(ungrouped(weight, self.layer))

    def _load_from_state_dict(self, *arguments) -> None:
        super()._load_from_state_dict(*arguments)
        if self.codes is not None:  # the dequantized weight is not part of the state
            self._dequantize()

    def forward(self, x: Tensor, *args, **kwargs):
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        return self.layer(x, *args, **kwargs)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


def replace_module(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` wherever `old` stands in the network, in every parent that holds it."""
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if child is old and parent is not new:
                parent._modules[name] = new


def batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """Batch-norm layers that keep running statistics, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.running_mean is not None
    }


@torch.no_grad()
def reestimate_batch_norm(network: nn.Module, batches: Iterable[Tensor], total: int, momentum: float | None) -> None:
    """Runs `batches` through the network with only its batch-norm layers in train mode (METHODS, section 4).

    Running statistics move by `momentum` a batch, or become the plain average over all batches where it is None.
    No labels, no gradients; every layer's mode and momentum are as before afterwards.
    """
    norms = batch_norms(network).values()
    before = [(norm.training, norm.momentum) for norm in norms]
    cut = _CutAfterNorms(network)
    try:
        for norm in norms:
            norm.train()
            norm.momentum = momentum
            if momentum is None:
                norm.reset_running_stats()
        for images in progress(batches, "batch-norm", total=total):
            try:
                with contextlib.suppress(_NormsDone), cut:
                    network(images)
            except ValueError as error:  # torch's own, where a channel has a single value in a batch
                raise InputError(f"batch-norm re-estimation: {error}; use larger batches or mode none") from error
    finally:
        for norm, (training, old_momentum) in zip(norms, before, strict=True):
            norm.train(training)
            norm.momentum = old_momentum


class _NormsDone(Exception):  # noqa: N818  nothing is wrong
    """Thrown out of a forward whose rest has no batch-norm layer."""


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


BatchNormStatistics = dict[str, tuple[Tensor, Tensor]]


def measure_batch_norm(network: nn.Module, batches: Iterable[Tensor], total: int) -> BatchNormStatistics:
    """Mean and variance (each (C,)) of every batch-norm layer's input, averaged over `batches`; restores its own."""
    own = batch_norm_statistics(network)
    reestimate_batch_norm(network, batches, total, momentum=None)
    measured = batch_norm_statistics(network)
    set_batch_norm(network, own)
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
    """The trained statistics moved by what quantization changes on the same pictures.

    Means move by the difference, variances by the ratio, which keeps them positive. Pictures that differ from the
    training set's (few, or compressed again) so cannot pull the statistics away by themselves.
    """
    return {
        name: (
            mean + quantized[name][0] - floating_point[name][0],
            variance * (quantized[name][1] + 1e-12) / (floating_point[name][1] + 1e-12),
        )
        for name, (mean, variance) in trained.items()
    }
