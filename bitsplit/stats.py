"""What every layer's inputs look like: one pass over the calibration images serves all layers."""

import collections
import itertools
import math
import time
import weakref
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bitsplit.capture import LayerCall, LayerCalls
from bitsplit.errors import InputError
from bitsplit.layout import WEIGHTED, grouped_weight
from bitsplit.progress import progress

_PIECE_PIXELS = 2**20
_PANEL = 512  # rows of a Gram matrix at a time


@dataclass(frozen=True)
class LayerStats:
    """Second moments of one layer's calibration patches, averaged over `n` patches.

    gram (G, N, N) = X Xᵀ / n, cross (G, M, N) = Y Xᵀ / n, energy (G, M) = ‖y‖² / n, with Y = W X the floating-point
    layer's output without its bias; G groups of M output channels and N inputs each.
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor
    n: int

    @classmethod
    def of_weight(cls, gram: Tensor, weight: Tensor, n: int) -> "LayerStats":
        """Statistics of a layer with weight (G, M, N) that reads inputs of this Gram matrix: C = Y Xᵀ = W A."""
        cross = weight @ gram
        return cls(gram, cross, (cross.double() * weight.double()).sum(dim=-1), n)

    @classmethod
    def weight_space(cls, weight: Tensor) -> "LayerStats":
        """The statistics that make ‖y − αqX‖² the weights' own error ‖w − αq‖²: A = I."""
        groups, _, inputs = weight.shape
        identity = torch.eye(inputs, dtype=weight.dtype, device=weight.device).expand(groups, -1, -1)
        return cls.of_weight(identity, weight, 0)


@dataclass(frozen=True)
class InputSamples:
    """Values that enter one layer: a uniform sample (n, C) of its C input channels, and the extremes of all values."""

    values: Tensor
    low: float
    high: float

    @classmethod
    def pooled(cls, parts: "list[InputSamples]") -> "InputSamples":
        """The samples of several layers that read the same tensor, as one."""
        values = torch.cat([part.values for part in parts])
        return cls(values, min(part.low for part in parts), max(part.high for part in parts))


@dataclass
class LayerRecord:
    """What the pass saw of one layer: its statistics, the range of its input, and whose input it shares."""

    name: str
    stats: LayerStats
    signed: bool
    source: str  # the first layer that read the same tensors; its own name where there is none


@dataclass
class Statistics:
    """Layers in the order of their first call, the weights left out with the reason, and what the pass took.

    `batch_norm` is filled where it is first needed: by number of batches, what the floating-point network's batch-norm
    layers receive (mean and variance by layer).
    """

    layers: dict[str, LayerRecord] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    batch_norm: dict[int, dict[str, tuple[Tensor, Tensor]]] = field(default_factory=dict)


def weighted_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Convolutions, transposed ones and linear layers by name, subclasses included.

    Modules that share a weight are one layer. A module whose weight is computed from other parameters
    (`torch.nn.utils.parametrizations`) is none.
    """
    layers: dict[int, tuple[str, nn.Module]] = {}
    for name, module in network.named_modules():
        if isinstance(module, WEIGHTED) and "weight" in module._parameters:
            layers.setdefault(id(module.weight), (name, module))
    return dict(layers.values())


def generator_for(name: str, seed: int, device: torch.device) -> torch.Generator:
    """A random stream of its own for each layer, so that one layer's draws never depend on another's."""
    # Hashed together: torch's CPU generator reads only the low 32 bits of its seed.
    return torch.Generator(device).manual_seed(zlib.crc32(f"{seed}/{name}".encode()))


@torch.no_grad()
def collect_statistics(
    network: nn.Module, batches: Iterable[Tensor], total: int, patches: int, seed: int
) -> Statistics:
    """Gram and cross matrices of every layer from one pass over `batches` (`total` of them).

    About `patches` random patches per layer in all, the same number from each batch. The network must be in eval mode.
    Raises InputError when a layer or the output meets NaN or infinity.
    """
    started = time.perf_counter()
    layers = weighted_layers(network)
    per_batch = -(-patches // total)
    share = 1.0  # of a batch, in the forward that is running
    device = next(network.parameters()).device
    generators = {name: generator_for(name, seed, device) for name in layers}
    grams: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    lows: dict[str, float] = {}
    sources = _SharedInputs()

    def visit(name: str, call: LayerCall) -> None:
        low, high = _finite_range(name, call.input)
        lows[name] = min(low, lows.get(name, low))
        sources.see(name, call.input)
        x = call.patches(math.ceil(per_batch * share * shares.next(name)), generators[name])
        seen, new = counts.get(name, 0), x.shape[1]
        if name not in grams:
            grams[name] = x.new_zeros(x.shape[0], x.shape[2], x.shape[2])
        _average_in(grams[name], x, seen)
        counts[name] = seen + new

    all_pieces, shares = _with_shares(network, layers, pieces(progress(batches, "calibration", total=total)))
    with LayerCalls(network, layers, visit) as calls:
        for images, part in all_pieces:
            share = part
            shares.restart()
            output = network(images)
            if isinstance(output, Tensor) and not output.isfinite().all():
                raise InputError("the network's output holds NaN or infinity on the calibration pictures")

    statistics = Statistics(skipped=dict(calls.skipped))
    for name, gram in grams.items():
        for start in range(_PANEL, gram.shape[-1], _PANEL):
            rows = slice(start, start + _PANEL)
            gram[:, :start, rows] = gram[:, rows, :start].mT
        stats = LayerStats.of_weight(gram, grouped_weight(layers[name]).to(gram.dtype), counts[name])
        source = sources.of(name)
        signed = any(lows[other] < 0 for other in grams if sources.of(other) == source)
        statistics.layers[name] = LayerRecord(name, stats, signed, source)
    for name, module in network.named_modules():
        key = f"{name}.weight"
        if isinstance(module, WEIGHTED) and "weight" not in module._parameters:
            statistics.skipped[key] = "computed from other parameters"
        elif name in layers and name not in grams and key not in statistics.skipped:
            statistics.skipped[key] = "never used as it is: not called, or computed anew in the forward"
    statistics.seconds = time.perf_counter() - started
    return statistics


@torch.no_grad()
def collect_samples(
    network: nn.Module,
    layers: dict[str, nn.Module],
    batches: Iterable[Tensor],
    total: int,
    samples: int,
    channel_samples: int,
    seed: int,
) -> dict[str, InputSamples]:
    """A uniform sample of about `samples` input values of each of `layers`, from all of `batches`; more where that
    would leave fewer than `channel_samples` a channel."""
    device = next(network.parameters()).device
    generators = {name: generator_for(f"{name}/input", seed, device) for name in layers}
    values: dict[str, list[Tensor]] = {name: [] for name in layers}
    ranges: dict[str, tuple[float, float]] = {}
    share = 1.0

    def visit(name: str, call: LayerCall) -> None:
        low, high = _finite_range(name, call.input)
        earlier = ranges.get(name, (low, high))
        ranges[name] = (min(low, earlier[0]), max(high, earlier[1]))
        channels = call.input.shape[-1 if call.geometry is None else -3]
        count = math.ceil(max(samples / channels, channel_samples) * share * shares.next(name) / total)
        values[name].append(call.channel_vectors(count, generators[name]))

    all_pieces, shares = _with_shares(network, layers, pieces(progress(batches, "activation ranges", total=total)))
    with LayerCalls(network, layers, visit):
        for images, part in all_pieces:
            share = part
            shares.restart()
            network(images)
    return {name: InputSamples(torch.cat(parts), *ranges[name]) for name, parts in values.items() if parts}


class _SharedInputs:
    """Which layers read the very same tensors, call by call, and so can read them through one quantizer."""

    def __init__(self) -> None:
        self._alive: list[tuple[weakref.ref, int, int]] = []  # tensor, its version, its number
        self._numbers = itertools.count()
        self._read: dict[str, list[int]] = {}

    def see(self, name: str, tensor: Tensor) -> None:
        # Tensors of inference mode have no version: there, in-place changes between two reads go unnoticed.
        version = 0 if tensor.is_inference() else tensor._version
        self._alive = [seen for seen in self._alive if seen[0]() is not None]
        same = (number for reference, at, number in self._alive if reference() is tensor and at == version)
        if (number := next(same, None)) is None:
            number = next(self._numbers)
            self._alive.append((weakref.ref(tensor), version, number))
        self._read.setdefault(name, []).append(number)

    def of(self, name: str) -> str:
        """The first layer that read what this one read; its own name where there is none."""
        return next(other for other, numbers in self._read.items() if numbers == self._read[name])


class _CallShares:
    """What part of a layer's input in one forward each of its calls reads: a layer that is applied to all levels of a
    pyramid is sampled by their sizes. Measured on one piece of the pictures."""

    def __init__(self, network: nn.Module, layers: dict[str, nn.Module], images: Tensor):
        sizes: dict[str, list[int]] = {}
        with LayerCalls(network, layers, lambda name, call: sizes.setdefault(name, []).append(call.input.numel())):
            network(images)
        self._shares = {name: [size / sum(all_) for size in all_] for name, all_ in sizes.items() if sum(all_)}
        self.restart()

    def restart(self) -> None:
        """Called before each forward."""
        self._calls: collections.Counter[str] = collections.Counter()

    def next(self, name: str) -> float:
        """The share of the layer's next call; 1 where the measured forward had no such call."""
        call, shares = self._calls[name], self._shares.get(name, ())
        self._calls[name] += 1
        return shares[call] if call < len(shares) else 1.0


def _with_shares(
    network: nn.Module, layers: dict[str, nn.Module], stream: Iterator[tuple[Tensor, float]]
) -> tuple[Iterator[tuple[Tensor, float]], _CallShares]:
    """The pieces, all of them still, and the shares measured on the first."""
    first = next(stream)
    return itertools.chain([first], stream), _CallShares(network, layers, first[0])


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


def _average_in(gram: Tensor, x: Tensor, seen: int) -> None:
    """Makes gram (G, N, N), XᵀX averaged over `seen` patches, the average over those and x (G, n, N) too.

    In panels of rows that end at the diagonal: what is above is the mirror image, and nearly half of the product. A
    running mean, because sums over all patches would lose digits in float32.
    """
    total = seen + x.shape[1]
    for start in range(0, gram.shape[-1], _PANEL):
        rows, columns = slice(start, start + _PANEL), slice(0, start + _PANEL)
        left = x[..., rows].transpose(1, 2)
        gram[:, rows, columns].baddbmm_(left, x[..., columns], beta=seen / total, alpha=1 / total)


def _finite_range(name: str, tensor: Tensor) -> tuple[float, float]:
    # In the order in which the values lie in memory; in another one, channels last takes fifty times as long.
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    low, high = (bound.item() for bound in tensor.permute(order).aminmax())
    if not (torch.isfinite(torch.tensor([low, high])).all()):
        raise InputError(f"layer {name} receives NaN or infinity; check the weights and the calibration pictures")
    return low, high
