"""What every layer's inputs look like: one pass over the calibration images serves all layers."""

import collections
import contextlib
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
from bitsplit.objective import panels
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
        energy = [(y.double() * w.double()).sum(dim=-1) for y, w in panels(cross, weight)]
        return cls(gram, cross, torch.cat(energy, dim=1), n)

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
    """What the pass saw of one layer: its statistics, the range of its input, whose input it shares, its calls."""

    name: str
    stats: LayerStats
    signed: bool
    source: str  # the first layer that read the same tensors; its own name where there is none
    calls: int  # in every forward; 0 where their number varies


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
        x = call.patches(math.ceil(per_batch * share * calls_seen.next_share(name)), generators[name])
        seen, new = counts.get(name, 0), x.shape[1]
        if name not in grams:
            grams[name] = x.new_zeros(x.shape[0], x.shape[2], x.shape[2])
        _average_in(grams[name], x, seen)
        counts[name] = seen + new

    stream = pieces(progress(batches, "calibration", total=total))
    first = next(stream)
    calls_seen = _Calls(network, layers, first[0])
    with LayerCalls(network, layers, visit) as calls:
        for images, part in itertools.chain([first], stream):
            share = part
            with calls_seen.forward():
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
        statistics.layers[name] = LayerRecord(name, stats, signed, source, calls_seen.of(name))
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
) -> dict[str, list[InputSamples]]:
    """A uniform sample of about `samples` input values of each call of `layers` in a forward, by layer and call, from
    all of `batches`; more where that would leave fewer than `channel_samples` a channel."""
    device = next(network.parameters()).device
    generators = {name: generator_for(f"{name}/input", seed, device) for name in layers}
    values: dict[tuple[str, int], list[Tensor]] = collections.defaultdict(list)
    ranges: dict[tuple[str, int], tuple[float, float]] = {}
    share = 1.0
    calls: collections.Counter[str] = collections.Counter()  # of the forward that is running

    def visit(name: str, call: LayerCall) -> None:
        key = name, calls[name]
        calls[name] += 1
        low, high = _finite_range(name, call.input)
        earlier = ranges.get(key, (low, high))
        ranges[key] = (min(low, earlier[0]), max(high, earlier[1]))
        channels = call.input.shape[-1 if call.geometry is None else -3]
        count = math.ceil(max(samples / channels, channel_samples) * share / total)
        values[key].append(call.channel_vectors(count, generators[name]))

    with LayerCalls(network, layers, visit):
        for images, part in pieces(progress(batches, "activation ranges", total=total)):
            share = part
            calls.clear()
            network(images)
    found: dict[str, list[InputSamples]] = collections.defaultdict(list)
    for (name, call), parts in sorted(values.items()):
        found[name].append(InputSamples(torch.cat(parts), *ranges[name, call]))
    return dict(found)


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


class _Calls:
    """The calls of each layer in one forward: how many, and what part of its whole input each reads.

    A layer that is applied to all levels of a pyramid is sampled by their sizes, as measured on one piece of pictures.
    """

    def __init__(self, network: nn.Module, layers: dict[str, nn.Module], images: Tensor):
        sizes: dict[str, list[int]] = collections.defaultdict(list)
        with LayerCalls(network, layers, lambda name, call: sizes[name].append(call.input.numel())):
            network(images)
        self._shares = {name: [size / max(sum(all_), 1) for size in all_] for name, all_ in sizes.items()}
        self._varying: set[str] = set()
        self._running: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Around each forward."""
        self._running.clear()
        yield
        names = self._shares.keys() | self._running.keys()
        self._varying |= {name for name in names if self._running[name] != len(self._shares.get(name, ()))}

    def next_share(self, name: str) -> float:
        """The share of the layer's next call; 1 where the measured forward had no such call."""
        call, shares = self._running[name], self._shares.get(name, ())
        self._running[name] += 1
        return shares[call] if call < len(shares) else 1.0

    def of(self, name: str) -> int:
        """The number of calls in every forward; 0 where it varies."""
        return 0 if name in self._varying else len(self._shares.get(name, ()))


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
