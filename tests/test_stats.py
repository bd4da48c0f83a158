"""Layer statistics against unfolded inputs and real outputs, sharing of weights and inputs, and samples."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_capture import CONVOLUTIONS, EVERYTHING, has_hooks, unfolded
from torch import nn
from torch.nn.utils import parametrizations

from bitsplit.errors import InputError
from bitsplit.layout import grouped_weight
from bitsplit.stats import (
    LayerStats,
    collect_samples,
    collect_statistics,
    generator_for,
    weighted_layers,
)


def pictures(*sizes, channels=4, side=8, seed=0, dtype=torch.float64):
    """Batches of these sizes."""
    random = np.random.default_rng(seed)
    return [torch.tensor(random.standard_normal((n, channels, side, side)), dtype=dtype) for n in sizes]


def statistics(network, batches, patches=EVERYTHING, seed=0):
    return collect_statistics(network.eval(), batches, len(batches), patches, seed)


def moments(x, y):
    """(gram, cross, energy) of inputs x (G, K, N) and outputs y (G, K, M), averaged over K, by numpy."""
    x, y, count = x.detach().numpy(), y.detach().numpy(), x.shape[1]
    gram, cross = np.einsum("gkn,gkm->gnm", x, x) / count, np.einsum("gkm,gkn->gmn", y, x) / count
    return gram, cross, (y**2).sum(axis=1) / count


def assert_moments(stats, x, y):
    for found, expected in zip((stats.gram, stats.cross, stats.energy), moments(x, y), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    assert stats.n == x.shape[1]


def outputs(layer, x):
    """The layer's actual output without its bias, (G, positions, M)."""
    y = layer(x).detach()
    if layer.bias is not None:
        y = y - layer(torch.zeros_like(x)).detach()
    y = y.movedim(1, -1).reshape(-1, layer.groups, y.shape[1] // layer.groups)
    return y.movedim(1, 0)


# Moments


@pytest.mark.parametrize("sizes", [(3,), (2, 4, 1)], ids=["one batch", "three batches"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_moments(name, sizes):
    layer, pad, mode = CONVOLUTIONS[name]
    layer, batches = copy.deepcopy(layer).double(), pictures(*sizes)
    x = torch.cat(batches)
    record = statistics(nn.Sequential(layer), batches).layers["0"]
    assert_moments(record.stats, unfolded(layer, x, pad, mode), outputs(layer, x))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_moments_summed_in_panels(name, monkeypatch):
    monkeypatch.setattr("bitsplit.stats._PANEL", 5)
    test_convolution_moments(name, (2, 4, 1))


def test_unbatched_convolution_moments():
    layer, x = nn.Conv2d(4, 5, 3, padding=1, stride=2).double(), pictures(1)[0]
    stats = statistics(nn.Sequential(layer), [x[0]]).layers["0"].stats
    assert_moments(stats, unfolded(layer, x, (1, 1, 1, 1), "constant"), outputs(layer, x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(9, 5), (3, 4, 5)])
def test_linear_moments(shape, bias):
    torch.manual_seed(1)
    layer, x = nn.Linear(5, 3, bias=bias).double(), torch.randn(shape, dtype=torch.float64)
    y = (layer(x) - (layer.bias if bias else 0)).detach()
    stats = statistics(nn.Sequential(layer), [x]).layers["0"].stats
    assert_moments(stats, x.reshape(1, -1, 5), y.reshape(1, -1, 3))


def test_float32_moments_keep_their_digits():
    """Large inputs and many batches: a plain sum in float32 would lose them."""
    batches = [batch * 100 + 300 for batch in pictures(*[4] * 40, dtype=torch.float32)]
    layer = nn.Conv2d(4, 2, 1, bias=False)
    gram = statistics(nn.Sequential(layer), batches).layers["0"].stats.gram
    x = torch.cat(batches).double().movedim(1, -1).reshape(1, -1, 4)
    np.testing.assert_allclose(gram.numpy(), (x.mT @ x / x.shape[1]).numpy(), rtol=1e-5)


def test_of_weight_and_weight_space_agree_with_numpy():
    random = np.random.default_rng(3)
    weight, x = random.standard_normal((2, 3, 4)), random.standard_normal((2, 30, 4))
    gram = torch.tensor(moments(torch.tensor(x), torch.tensor(x))[0])
    stats = LayerStats.of_weight(gram, torch.tensor(weight), 30)
    assert_moments(stats, torch.tensor(x), torch.tensor(x @ weight.transpose(0, 2, 1)))
    plain = LayerStats.weight_space(torch.tensor(weight))
    assert np.array_equal(plain.gram.numpy(), np.stack([np.eye(4)] * 2))
    assert np.array_equal(plain.cross.numpy(), weight)
    np.testing.assert_allclose(plain.energy.numpy(), (weight**2).sum(axis=-1), rtol=1e-12)


def test_grouped_weight():
    layer = nn.Conv2d(4, 6, 3, groups=2)
    weight = grouped_weight(layer)
    assert weight.shape == (2, 3, 18) and not weight.requires_grad
    assert torch.equal(weight[1, 2], layer.weight[5].flatten())


# Random patches


class Twin(nn.Module):
    """Layer `a`, and other layers before and beside it that must not disturb its draws."""

    def __init__(self, crowded):
        super().__init__()
        torch.manual_seed(7)
        self.a = nn.Conv2d(4, 3, 3)
        self.others = nn.ModuleList(nn.Conv2d(4, 3, 3) for _ in range(2 if crowded else 0))

    def forward(self, x):
        y = sum((other(x) for other in self.others), torch.zeros(()))
        return y + self.a(x)


def test_same_seed_same_statistics_and_other_layers_do_not_matter():
    batches = pictures(4, 4, 4, dtype=torch.float32)
    plain, again = (statistics(Twin(False), batches, patches=60).layers["a"].stats for _ in range(2))
    crowded = statistics(Twin(True), batches, patches=60).layers["a"].stats
    other = statistics(Twin(False), batches, patches=60, seed=1).layers["a"].stats
    assert plain.n == again.n == crowded.n == other.n == 60
    assert torch.equal(plain.gram, again.gram) and torch.equal(plain.gram, crowded.gram)
    assert torch.equal(plain.cross, again.cross) and torch.equal(plain.energy, crowded.energy)
    assert not torch.equal(plain.gram, other.gram)


def test_layers_draw_from_streams_of_their_own():
    numbers = [
        torch.randint(10**9, (4,), generator=generator_for(name, seed, torch.device("cpu"))).tolist()
        for name in ("a", "b")
        for seed in (0, 1)
    ]
    assert len({tuple(drawn) for drawn in numbers}) == 4


def test_random_patches_estimate_the_moments_of_all():
    batches = pictures(8, 8, 8, dtype=torch.float32)
    layer = nn.Conv2d(4, 3, 3)
    everything = statistics(nn.Sequential(layer), batches).layers["0"].stats.gram
    draws = [statistics(nn.Sequential(layer), batches, patches=300, seed=seed).layers["0"].stats for seed in range(40)]
    assert all(stats.n == 300 for stats in draws)
    mean = torch.stack([stats.gram for stats in draws]).mean(dim=0)
    error = torch.linalg.matrix_norm(mean - everything) / torch.linalg.matrix_norm(everything)
    assert error < 0.1  # 12,000 draws; 300 alone are off by 0.3


# Shared weights


def test_a_module_used_twice_is_one_layer_of_both_calls():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(2)
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x).relu()[..., :4])

    network, (x,) = Recurrent().double(), pictures(2)
    found = statistics(network, [x])
    assert list(found.layers) == ["conv"]
    calls = (x, network.conv(x).relu()[..., :4])
    columns = torch.cat([unfolded(network.conv, call, (1, 1, 1, 1), "constant") for call in calls], dim=1)
    assert_moments(found.layers["conv"].stats, columns, torch.cat([outputs(network.conv, c) for c in calls], dim=1))


def test_modules_that_share_a_weight_are_one_layer():
    network = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 1, stride=2)).double()
    network[2].weight = network[0].weight
    assert list(weighted_layers(network)) == ["0"]
    (x,) = pictures(3)
    found = statistics(network, [x])
    assert list(found.layers) == ["0"] and found.skipped == {}
    calls = x, network[0](x).relu()[:, :, ::2, ::2]
    columns = torch.cat([call.movedim(1, -1).reshape(1, -1, 4) for call in calls], dim=1)
    assert_moments(found.layers["0"].stats, columns, columns @ network[0].weight.detach().flatten(1).T)


# Shared inputs


class Block(nn.Module):
    def __init__(self, change=lambda x: x):
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.a = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.b, self.down = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, stride=2)
        self.change = change

    def forward(self, x):
        x = self.stem(x).relu()
        y = self.b(self.a(x).relu())
        return y + self.down(self.change(x))


@pytest.mark.parametrize(
    "change, shared",
    [
        (lambda x: x, True),
        (lambda x: x.mul_(2), False),
        (lambda x: F.relu(x, inplace=True), False),
        (lambda x: x * 2, False),
    ],
    ids=["the same tensor", "multiplied in place", "relu in place", "a new tensor"],
)
@pytest.mark.parametrize("sizes", [(2,), (2, 3, 2)])
def test_source_of_the_down_sampling_convolution(change, shared, sizes):
    found = statistics(Block(change).double(), pictures(*sizes)).layers
    sources = {name: record.source for name, record in found.items()}
    assert sources == {"stem": "stem", "a": "a", "b": "b", "down": "a" if shared else "down"}
    assert list(found) == ["stem", "a", "b", "down"]  # the order of the calls


class Pyramid(nn.Module):
    """`a` and `b` read both levels, `c` the coarse one alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))

    def forward(self, x):
        levels = x, x[..., ::3, ::3]
        return sum(self.a(level).sum() + self.b(level).sum() for level in levels) + self.c(levels[1]).sum()


def test_layers_share_a_source_where_they_read_the_same_tensors_call_by_call():
    found = statistics(Pyramid().double(), pictures(2)).layers
    assert {name: record.source for name, record in found.items()} == {"a": "a", "b": "a", "c": "c"}


def test_the_levels_of_a_pyramid_are_sampled_by_their_sizes():
    """The coarse level, a ninth of the positions, holds the only values of its first row and column."""

    class Marked(Pyramid):
        def forward(self, x):
            return self.a(torch.zeros_like(x)).sum() + self.a(torch.ones_like(x[..., ::3, ::3])).sum()

    batches = [torch.zeros(4, 4, 12, 12, dtype=torch.float64)] * 5
    network = Marked().double()
    found = collect_statistics(network, batches, 5, patches=1000, seed=0).layers["a"].stats
    assert found.gram.flatten().tolist() == pytest.approx([0.1] * 16)  # the share of ones among the patches


def test_calls_in_a_forward():
    """Modules that share a weight are one layer; a layer called now once, now twice has no number of calls."""

    class Sometimes(Pyramid):
        def forward(self, x):
            return super().forward(x) + (self.c(x).sum() if x.sum() > 0 else 0)

    batches = [sign * torch.ones(1, 4, 6, 6, dtype=torch.float64) for sign in (1, -1, 1)]
    for order in (batches, batches[1:]):
        found = statistics(Sometimes().double(), order).layers
        assert {name: record.calls for name, record in found.items()} == {"a": 2, "b": 2, "c": 0}
    twins = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)).double()
    twins[2].weight = twins[0].weight
    assert statistics(twins, pictures(2)).layers["0"].calls == 2


def test_signs():
    found = statistics(Block().double(), pictures(2)).layers
    assert [name for name, record in found.items() if record.signed] == ["stem"]
    positive = [batch.abs() for batch in pictures(2)]
    assert not statistics(Block().double(), positive).layers["stem"].signed
    late = [*positive, *positive, -positive[0]]
    assert statistics(Block().double(), late).layers["stem"].signed


# Wrong input


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_not_finite_name_the_layer(value):
    class Poisoned(Block):
        def forward(self, x):
            x = self.stem(x).relu()
            return self.b(self.a(x) * value) + self.down(x)

    network = Poisoned().double()
    with pytest.raises(InputError, match=r"\bb\b") as error:
        statistics(network, pictures(2))
    assert "\n" not in str(error.value)
    assert not has_hooks(network)
    with pytest.raises(InputError, match="stem"):
        statistics(Block().double(), [pictures(1)[0] * value])
    with pytest.raises(InputError, match=r"\bb\b"):
        collect_samples(network, {"b": network.b}, pictures(2), 1, 100, 1000, 0)
    assert not has_hooks(network)


def test_output_not_finite():
    class Divided(Block):
        def forward(self, x):
            return super().forward(x) / 0

    with pytest.raises(InputError, match="output"):
        statistics(Divided().double(), pictures(2))


def test_hooks_are_gone_when_the_pictures_end_half_way():
    def broken():
        yield pictures(2)[0]
        raise OSError("the disk is gone")

    network = Block().double()
    with pytest.raises(OSError, match="gone"):
        collect_statistics(network, broken(), 2, 10, 0)
    assert not has_hooks(network)


# Weights left out


class Standardised(nn.Conv2d):
    """Computes its weight in the forward."""

    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean())


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.good, self.up = nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.borrowed, self.computed = nn.Conv2d(4, 4, 1), Standardised(4, 4, 1)
        self.unused, self.spare = nn.Conv2d(4, 4, 1), nn.Linear(4, 4)

    def forward(self, x):
        return self.computed(F.conv2d(self.up(self.good(x)), self.borrowed.weight))


@pytest.mark.parametrize(
    "name, reason",
    [
        ("up", "transposed convolution"),
        ("borrowed", "outside"),
        ("computed", "computed"),
        ("unused", "not called"),
        ("spare", "not called"),
    ],
)
def test_every_weight_left_out_is_named(name, reason):
    found = statistics(Odd().double(), pictures(2))
    assert list(found.layers) == ["good"]
    assert set(found.skipped) == {f"{left}.weight" for left in ("up", "borrowed", "computed", "unused", "spare")}
    assert reason in found.skipped[f"{name}.weight"]


def test_every_parametrized_weight_is_named():
    """Such a weight is a new tensor at each access, whose id() may be another's a moment later."""
    layers = [parametrizations.weight_norm(nn.Conv2d(4, 4, 1)) for _ in range(4)]
    network = nn.Sequential(nn.Conv2d(4, 4, 1), *layers).double()
    found = statistics(network, pictures(2))
    assert list(found.layers) == ["0"]
    assert sorted(key[0] for key in found.skipped) == ["1", "2", "3", "4"]
    assert all("computed" in reason for reason in found.skipped.values())
