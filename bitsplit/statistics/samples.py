"""A uniform sample of the values that each layer reads, call by call: what activation scales are chosen from."""

import collections
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitsplit.progress import progress
from bitsplit.statistics.capture import LayerCall, LayerCalls, layer_generators
from bitsplit.statistics.finite import finite_range


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
    all of `batches` (`total`), run whole; more where that would leave fewer than `channel_samples` a channel."""
    sampler = _Sampler(network, samples, channel_samples, total, seed)
    with LayerCalls(network, layers, sampler.add):
        for images in progress(batches, "activation ranges", total=total):
            sampler.begin_forward()
            network(images)
    return sampler.finished()


class _Sampler:
    """The samples of all layers; `add` takes one call of one layer."""

    def __init__(self, network: nn.Module, samples: int, channel_samples: int, batches: int, seed: int):
        self._samples, self._channel_samples, self._batches = samples, channel_samples, batches
        self._generators = layer_generators(network, "{}/input", seed)
        self._values: dict[tuple[str, int], list[Tensor]] = collections.defaultdict(list)
        self._ranges: dict[tuple[str, int], tuple[float, float]] = {}
        self._calls: collections.Counter[str] = collections.Counter()  # of the forward that is running

    def begin_forward(self) -> None:
        self._calls.clear()

    def add(self, name: str, call: LayerCall) -> None:
        key = name, self._calls[name]
        self._calls[name] += 1
        low, high = finite_range(name, call.input)
        earlier = self._ranges.get(key, (low, high))
        self._ranges[key] = (min(low, earlier[0]), max(high, earlier[1]))
        count = math.ceil(max(self._samples / call.channels, self._channel_samples) / self._batches)
        self._values[key].append(call.channel_vectors(count, self._generators[name]))

    def finished(self) -> dict[str, list[InputSamples]]:
        layers: dict[str, list[InputSamples]] = collections.defaultdict(list)
        for (name, call), parts in sorted(self._values.items()):
            layers[name].append(InputSamples(torch.cat(parts), *self._ranges[name, call]))
        return dict(layers)
