"""Small networks with every kind of layer, their images, and every method with quick settings."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsplit import methods, ptq
from bitsplit.layers.batch_norm import reestimate_batch_norm
from bitsplit.layers.quantized import QuantizedLayer
from bitsplit.methods.lapq import LAPQ
from bitsplit.methods.tensorrt import TensorRT
from bitsplit.plan import Plan
from bitsplit.settings import BatchNorm, Calibration, Settings
from bitsplit.statistics.batches import CalibrationBatches

SMALL = Settings(calibration=Calibration(batch_size=8, patches=800, samples=20_000))
NO_NORM = Settings(calibration=SMALL.calibration, batch_norm=BatchNorm(mode="none"))
QUICK = {"lapq": LAPQ(images=16, evaluations=15), "tensorrt": TensorRT(bins=512)}
EVERY = [QUICK.get(name) or methods.named(name) for name in methods.names()]
every_method = pytest.mark.parametrize("method", EVERY, ids=methods.names())
LAYERS = ["stem", "main.0", "main.3", "main.6", "down", "wide", "mix", "head"]


def unit(convolution):
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()


class Residual(nn.Module):
    """Strided, padded, dilated, grouped, depthwise and 1×1 convolutions, a down-sampling shortcut and a classifier."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, stride=2, bias=False)
        grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.main = nn.Sequential(*unit(depthwise), *unit(nn.Conv2d(8, 12, 1)), *unit(grouped)[:2])
        self.down = nn.Conv2d(8, 12, 1, stride=2)
        self.wide = nn.Conv2d(12, 12, 3, padding=2, dilation=2)
        self.mix = nn.Conv2d(12, 8, (3, 1))
        self.head = nn.Linear(8 * 4 * 6, 5)

    def forward(self, x):
        x = self.stem_norm(self.stem(x)).relu()
        x = (self.main(x) + self.down(x)).relu()
        x = self.mix(self.wide(x).relu()).relu()
        return self.head(x.flatten(1))


class Levels(nn.Module):
    """Two layers read both levels of a pyramid, of which the coarse one is a hundred times larger."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.stem, self.one, self.two, self.head = (nn.Conv2d(i, 4, 1) for i in (3, 4, 4, 8))

    def forward(self, x):
        x = self.stem(x)
        levels = x, 100 * x[..., ::2, ::2]
        return torch.cat([self.head(torch.cat([self.one(x), self.two(x)], 1)).flatten(1) for x in levels], 1)


class Block(nn.Module):
    """A stem, two residual blocks with an identity, and a classifier."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.stem = nn.Conv2d(3, 4, 3)
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.first(x)).relu()
        x = (x + self.second(x)).relu()
        return self.head(x.mean((2, 3)))


def images(*sizes, seed=0):
    """Batches of smooth noise, about as correlated as images are, each with a colour of its own."""
    random = np.random.default_rng(seed)
    parts = [(random.standard_normal((n, 3, 12, 12)), random.standard_normal((n, 3, 1, 1))) for n in sizes]
    return [F.avg_pool2d(torch.tensor(x * 2), 3, 1, 1).add(torch.tensor(colour * 2)).float() for x, colour in parts]


def lively(network):
    """The network in eval mode with statistics of its batch-norm that fit the images, as after training."""
    reestimate_batch_norm(network.eval(), images(16, 16, seed=5), 2, momentum=None)
    return network


class Signed(Residual):
    """Without the ReLU behind `wide`, as a linear bottleneck: `mix` reads values of both signs.

    The stem has no zeros either: behind a depthwise convolution a patch of zeros becomes a constant, and at a spike in
    the histogram the least divergence (`tensorrt`) may clip everything above.
    """

    def forward(self, x):
        x = F.softplus(self.stem_norm(self.stem(x)))
        x = (self.main(x) + self.down(x)).relu()
        x = self.mix(self.wide(x)).relu()
        return self.head(x.flatten(1))


class Standardised(nn.Conv2d):
    """Computes its weight in the forward."""

    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean())


class Odd(nn.Module):
    """One well-behaved layer and one of each kind that cannot be quantized by its input."""

    def __init__(self):
        super().__init__()
        self.good, self.up = nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.borrowed, self.computed = nn.Conv2d(4, 4, 1), Standardised(4, 4, 1)
        self.unused, self.spare = nn.Conv2d(4, 4, 1), nn.Linear(4, 4)

    def forward(self, x):
        return self.computed(F.conv2d(self.up(self.good(x)), self.borrowed.weight))


BATCHES = images(8, 8, 8, 4)
TEST = images(16, seed=9)[0]


def quantized_layers(network):
    return {name: module for name, module in network.named_modules() if isinstance(module, QuantizedLayer)}


def outputs(network, x=TEST):
    with torch.no_grad():
        return network(x)


def known_of(network, method, settings=SMALL, batches=None):
    """All that a call of `quantize` computes before the activations, for others to use again."""
    network = ptq.evaluation_copy(network)
    batches = CalibrationBatches(BATCHES if batches is None else batches, network)
    plan = Plan.of(network, batches, method, settings)
    statistics, norms = ptq.measure_statistics(network, plan, batches), ptq.measure_norms(network, plan, batches)
    weights = ptq.quantize_weights(network, plan, statistics)
    return ptq.Known(plan.reads, statistics, norms, weights)


def has_hooks(network):
    return any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def assert_same(one, other):
    """Two quantized networks equal to the last bit: modules, state and outputs."""
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert torch.equal(outputs(one), outputs(other))
    assert one.report.equals(other.report)


def assert_finite(network, x=TEST):
    assert outputs(network, x).isfinite().all()
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert np.isfinite(network.report[["relative_error", "input_error"]].to_numpy(dtype=float)).all()


def error_of(network: nn.Module, quantized: nn.Module, images: Tensor) -> float:
    """‖y − ŷ‖² / ‖y − ȳ‖² of the outputs."""
    with torch.no_grad():
        y, found = network(images), quantized(images)
    return ((found - y).square().sum() / (y - y.mean(dim=0)).square().sum()).item()
