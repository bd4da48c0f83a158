"""Second moments of what every layer reads: one pass over the calibration images serves all layers."""

import collections
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bitsplit.layout import WEIGHTED, grouped_weight, weighted_layers
from bitsplit.progress import progress
from bitsplit.solver.objective import panels
from bitsplit.statistics.batches import pieces
from bitsplit.statistics.capture import LayerCall, LayerCalls, layer_generators
from bitsplit.statistics.finite import check_output, finite_range
from bitsplit.statistics.reads import LayerReads, ReadRecorder

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
class LayerRecord:
    """What the pass saw of one layer: its moments (None once they are let go), whether its input has negative values,
    and how often each forward calls it (0 where that varies, or which tensors it reads)."""

    stats: LayerStats | None
    signed: bool
    calls: int


@dataclass(frozen=True)
class Statistics:
    """Layers in the order of their first call, the weights left out with the reason, and the seconds of the pass."""

    layers: dict[str, LayerRecord]
    skipped: dict[str, str]
    seconds: float

    def without_moments(self) -> "Statistics":
        """The rest, which takes no memory."""
        return replace(self, layers={name: replace(record, stats=None) for name, record in self.layers.items()})


@torch.no_grad()
def collect_statistics(
    network: nn.Module, reads: dict[str, LayerReads], batches: Iterable[Tensor], total: int, patches: int, seed: int
) -> Statistics:
    """Gram and cross matrices of every layer from one pass over `batches` (`total` of them).

    About `patches` random patches per layer in all, the same number from each batch, shared among a layer's calls by
    their sizes in `reads`. The network must be in eval mode. Raises InputError when a layer or the output meets NaN or
    infinity.
    """
    started = time.perf_counter()
    moments = _Moments(network, reads, -(-patches // total), seed)
    with LayerCalls(network, weighted_layers(network), moments.add) as calls:
        for images, share in pieces(progress(batches, "calibration", total=total)):
            moments.begin_forward(share)
            output = network(images)
            moments.end_forward()
            check_output(output)
    layers = moments.finished()
    return Statistics(
        layers, calls.skipped | unused_weights(network, layers, calls.skipped), time.perf_counter() - started
    )


class _Moments:
    """The running moments of all layers; `add` takes one call of one layer."""

    def __init__(self, network: nn.Module, reads: dict[str, LayerReads], patches: int, seed: int):
        self._layers, self._reads, self._patches = weighted_layers(network), reads, patches
        self._generators = layer_generators(network, "{}", seed)
        self._grams: dict[str, Tensor] = {}
        self._counts: collections.Counter[str] = collections.Counter()
        self._lows: dict[str, float] = {}
        self._forward = ReadRecorder()  # the one that is running
        self._varying: set[str] = set()
        self._share = 1.0

    def begin_forward(self, share: float) -> None:
        """`share` is the part of a batch that the forward reads."""
        self._share = share
        self._forward = ReadRecorder()

    def end_forward(self) -> None:
        reads = self._forward.reads()
        for name in self._reads.keys() | reads.keys():
            if name not in self._reads or name not in reads or reads[name].tensors != self._reads[name].tensors:
                self._varying.add(name)

    def add(self, name: str, call: LayerCall) -> None:
        low, _ = finite_range(name, call.input)
        self._lows[name] = min(low, self._lows.get(name, low))
        number = self._forward.add(name, call)
        known = number < self._usual_calls(name)
        share = self._reads[name].shares[number] if known else 1.0
        x = call.patches(math.ceil(self._patches * self._share * share), self._generators[name])
        if name not in self._grams:
            self._grams[name] = x.new_zeros(x.shape[0], x.shape[2], x.shape[2])
        average_in(self._grams[name], x, self._counts[name])
        self._counts[name] += x.shape[1]

    def _usual_calls(self, name: str) -> int:
        return len(self._reads[name].tensors) if name in self._reads else 0

    def finished(self) -> dict[str, LayerRecord]:
        layers = {}
        for name, gram in self._grams.items():
            mirror(gram)
            stats = LayerStats.of_weight(gram, grouped_weight(self._layers[name]).to(gram.dtype), self._counts[name])
            calls = 0 if name in self._varying else self._usual_calls(name)
            layers[name] = LayerRecord(stats, self._lows[name] < 0, calls)
        return layers


def unused_weights(network: nn.Module, layers: dict[str, LayerRecord], skipped: dict[str, str]) -> dict[str, str]:
    """Weights that no call has shown, by parameter name, with the reason."""
    weighted = weighted_layers(network)
    reasons = {}
    for name, module in network.named_modules():
        key = f"{name}.weight"
        if isinstance(module, WEIGHTED) and "weight" not in module._parameters:
            reasons[key] = "computed from other parameters"
        elif name in weighted and name not in layers and key not in skipped:
            reasons[key] = "never used as it is: not called, or computed anew in the forward"
    return reasons


def average_in(gram: Tensor, x: Tensor, seen: int) -> None:
    """Makes gram (G, N, N), XᵀX averaged over `seen` patches, the average over those and x (G, n, N) too.

    In panels of rows that end at the diagonal: what is above, nearly half of the product, is for `mirror` to fill in. A
    running mean, because sums over all patches would lose digits in float32.
    """
    total = seen + x.shape[1]
    for start in range(0, gram.shape[-1], _PANEL):
        rows, columns = slice(start, start + _PANEL), slice(0, start + _PANEL)
        transposed = x[..., rows].transpose(1, 2)
        gram[:, rows, columns].baddbmm_(transposed, x[..., columns], beta=seen / total, alpha=1 / total)


def mirror(gram: Tensor) -> None:
    """Fills in what `average_in` leaves out of gram (G, N, N)."""
    for start in range(_PANEL, gram.shape[-1], _PANEL):
        rows = slice(start, start + _PANEL)
        gram[:, :start, rows] = gram[:, rows, :start].mT
