"""Layer statistics against unfolded inputs and real outputs, shared weights, and weights left out."""

import copy

import numpy as np
import pytest
import torch
from convolutions import CONVOLUTIONS, EVERYTHING, Block, Pyramid, Sometimes, feature_maps, unfolded
from small_networks import Odd, has_hooks
from torch import nn
from torch.nn.utils import parametrizations

from bitsplit.errors import InputError
from bitsplit.layout import weighted_layers
from bitsplit.statistics.batches import pieces
from bitsplit.statistics.moments import LayerStats, collect_statistics
from bitsplit.statistics.reads import measure_reads
from bitsplit.statistics.samples import collect_samples


def statistics(network, batches, patches=EVERYTHING, seed=0):
    reads = measure_reads(network.eval(), next(pieces(batches))[0])
    return collect_statistics(network, reads, batches, len(batches), patches, seed)


def moments(x, y):
    """(gram, cross, energy) of inputs x (G, K, N) and outputs y (G, K, M), averaged over K, by numpy."""
    x, y, count = x.detach().numpy(), y.detach().numpy(), x.shape[1]
    gram, cross = np.einsum("gkn,gkm->gnm", x, x) / count, np.einsum("gkm,gkn->gmn", y, x) / count
    return gram, cross, (y**2).sum(axis=1) / count


def assert_moments(stats, x, y):
    for moment, expected in zip((stats.gram, stats.cross, stats.energy), moments(x, y), strict=True):
        assert moment.shape == expected.shape
        np.testing.assert_allclose(moment.numpy(), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
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
    layer, batches = copy.deepcopy(layer).double(), feature_maps(*sizes)
    x = torch.cat(batches)
    record = statistics(nn.Sequential(layer), batches).layers["0"]
    assert_moments(record.stats, unfolded(layer, x, pad, mode), outputs(layer, x))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_moments_summed_in_panels(name, monkeypatch):
    monkeypatch.setattr("bitsplit.statistics.moments._PANEL", 5)
    test_convolution_moments(name, (2, 4, 1))


def test_unbatched_convolution_moments():
    layer, x = nn.Conv2d(4, 5, 3, padding=1, stride=2).double(), feature_maps(1)[0]
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
    batches = [batch * 100 + 300 for batch in feature_maps(*[4] * 40, dtype=torch.float32)]
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
    batches = feature_maps(4, 4, 4, dtype=torch.float32)
    plain, again = (statistics(Twin(False), batches, patches=60).layers["a"].stats for _ in range(2))
    crowded = statistics(Twin(True), batches, patches=60).layers["a"].stats
    other = statistics(Twin(False), batches, patches=60, seed=1).layers["a"].stats
    assert plain.n == again.n == crowded.n == other.n == 60
    assert torch.equal(plain.gram, again.gram) and torch.equal(plain.gram, crowded.gram)
    assert torch.equal(plain.cross, again.cross) and torch.equal(plain.energy, crowded.energy)
    assert not torch.equal(plain.gram, other.gram)


def test_random_patches_estimate_the_moments_of_all():
    batches = feature_maps(8, 8, 8, dtype=torch.float32)
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

    network, (x,) = Recurrent().double(), feature_maps(2)
    seen = statistics(network, [x])
    assert list(seen.layers) == ["conv"]
    calls = (x, network.conv(x).relu()[..., :4])
    columns = torch.cat([unfolded(network.conv, call, (1, 1, 1, 1), "constant") for call in calls], dim=1)
    assert_moments(seen.layers["conv"].stats, columns, torch.cat([outputs(network.conv, c) for c in calls], dim=1))


def test_modules_that_share_a_weight_are_one_layer():
    network = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 1, stride=2)).double()
    network[2].weight = network[0].weight
    assert list(weighted_layers(network)) == ["0"]
    (x,) = feature_maps(3)
    seen = statistics(network, [x])
    assert list(seen.layers) == ["0"] and seen.skipped == {}
    calls = x, network[0](x).relu()[:, :, ::2, ::2]
    columns = torch.cat([call.movedim(1, -1).reshape(1, -1, 4) for call in calls], dim=1)
    assert_moments(seen.layers["0"].stats, columns, columns @ network[0].weight.detach().flatten(1).T)


# Calls


def test_the_levels_of_a_pyramid_are_sampled_by_their_sizes():
    """The coarse level, a ninth of the positions, holds the only values of its first row and column."""

    class Marked(Pyramid):
        def forward(self, x):
            return self.a(torch.zeros_like(x)).sum() + self.a(torch.ones_like(x[..., ::3, ::3])).sum()

    batches = [torch.zeros(4, 4, 12, 12, dtype=torch.float64)] * 5
    stats = statistics(Marked().double(), batches, patches=1000).layers["a"].stats
    assert stats.gram.flatten().tolist() == pytest.approx([0.1] * 16)  # the share of ones among the patches


def test_calls_in_a_forward():
    """Modules that share a weight are one layer; a layer called now once, now twice has no number of calls."""
    batches = [sign * torch.ones(1, 4, 6, 6, dtype=torch.float64) for sign in (1, -1, 1)]
    for order in (batches, batches[1:]):
        layers = statistics(Sometimes().double(), order).layers
        assert {name: record.calls for name, record in layers.items()} == {"a": 2, "b": 2, "c": 0}
    twins = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)).double()
    twins[2].weight = twins[0].weight
    assert statistics(twins, feature_maps(2)).layers["0"].calls == 2


@pytest.mark.parametrize("change", [lambda x: x, lambda x: x * 2])
def test_layers_are_in_the_order_of_their_first_calls(change):
    assert list(statistics(Block(change).double(), feature_maps(2, 3, 2)).layers) == ["stem", "a", "b", "down"]


def test_signs():
    layers = statistics(Block().double(), feature_maps(2)).layers
    assert [name for name, record in layers.items() if record.signed] == ["stem"]
    positive = [batch.abs() for batch in feature_maps(2)]
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
        statistics(network, feature_maps(2))
    assert "\n" not in str(error.value)
    assert not has_hooks(network)
    with pytest.raises(InputError, match="stem"):
        statistics(Block().double(), [feature_maps(1)[0] * value])
    with pytest.raises(InputError, match=r"\bb\b"):
        collect_samples(network, {"b": network.b}, feature_maps(2), 1, 100, 1000, 0)
    assert not has_hooks(network)


def test_output_not_finite():
    class Divided(Block):
        def forward(self, x):
            return super().forward(x) / 0

    with pytest.raises(InputError, match="output"):
        statistics(Divided().double(), feature_maps(2))


def test_hooks_are_gone_when_the_images_end_half_way():
    def broken():
        yield feature_maps(2)[0]
        raise OSError("the disk is gone")

    network = Block().double()
    reads = measure_reads(network, feature_maps(2)[0])
    with pytest.raises(OSError, match="gone"):
        collect_statistics(network, reads, broken(), 2, 10, 0)
    assert not has_hooks(network)


# Weights left out


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
    seen = statistics(Odd().double(), feature_maps(2))
    assert list(seen.layers) == ["good"]
    assert set(seen.skipped) == {f"{layer}.weight" for layer in ("up", "borrowed", "computed", "unused", "spare")}
    assert reason in seen.skipped[f"{name}.weight"]


def test_every_parametrized_weight_is_named():
    """Such a weight is a new tensor at each access, whose id() may be another's a moment later."""
    layers = [parametrizations.weight_norm(nn.Conv2d(4, 4, 1)) for _ in range(4)]
    network = nn.Sequential(nn.Conv2d(4, 4, 1), *layers).double()
    seen = statistics(network, feature_maps(2))
    assert list(seen.layers) == ["0"]
    assert sorted(key[0] for key in seen.skipped) == ["1", "2", "3", "4"]
    assert all("computed" in reason for reason in seen.skipped.values())
