"""Captured patches against torch's own unfold, and what the capture refuses to call a layer's input."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from convolutions import CONVOLUTIONS, EVERYTHING, unfolded
from scipy.stats import chi2
from small_networks import has_hooks
from torch import nn

from bitsplit.errors import InputError
from bitsplit.layout import weighted_layers
from bitsplit.statistics.capture import LayerCall, LayerCalls, layer_generators
from bitsplit.statistics.finite import finite_range


def calls_of(network, *inputs):
    """[(name, call), ...] of one forward, and the weights skipped."""
    seen = []
    with LayerCalls(network, weighted_layers(network), lambda name, call: seen.append((name, call))) as calls:
        network(*inputs)
    return seen, calls.skipped


def call_of(layer, x):
    """The one call of one layer."""
    ((_, call),), _ = calls_of(nn.Sequential(layer), x)
    return call


def image(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape), dtype=torch.float32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("size", [(9, 8), (7, 12)])
def test_all_patches_are_the_unfolded_matrix(name, size):
    layer, pad, mode = CONVOLUTIONS[name]
    x = image(3, 4, *size)
    patches = call_of(layer, x).patches(EVERYTHING, generator())
    assert torch.equal(patches, unfolded(layer, x, pad, mode))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_times_weight_are_the_output(name):
    layer, x = CONVOLUTIONS[name][0], image(2, 4, 9, 8)
    call = call_of(layer, x)
    weight = layer.weight.reshape(layer.groups, -1, call.patches(1, generator()).shape[-1])
    products = call.patches(EVERYTHING, generator()) @ weight.mT  # (G, positions, M)
    output = layer(x) - (0 if layer.bias is None or name == "keywords" else layer.bias[:, None, None])
    expected = output.movedim(1, -1).reshape(-1, layer.groups, weight.shape[1]).movedim(1, 0)
    torch.testing.assert_close(products, expected, rtol=1e-4, atol=1e-5)


def test_unbatched_image():
    layer, x = nn.Conv2d(4, 6, 3, padding=1), image(4, 9, 8)
    patches = call_of(layer, x).patches(EVERYTHING, generator())
    assert torch.equal(patches, unfolded(layer, x.unsqueeze(0), (1, 1, 1, 1), "constant"))


def test_channels_last_image():
    layer, x = nn.Conv2d(4, 6, 3, padding=1, groups=2), image(2, 4, 9, 8)
    patches = call_of(layer, x.to(memory_format=torch.channels_last)).patches(EVERYTHING, generator())
    assert torch.equal(patches, unfolded(layer, x, (1, 1, 1, 1), "constant"))


@pytest.mark.parametrize("shape", [(5,), (7, 5), (3, 4, 5)])
def test_linear_rows(shape):
    x = image(*shape)
    patches = call_of(nn.Linear(5, 2), x).patches(EVERYTHING, generator())
    assert torch.equal(patches, x.reshape(1, -1, 5))


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("count", [1, 11])
def test_random_patches_are_columns_of_the_unfolded_matrix(name, count):
    layer, pad, mode = CONVOLUTIONS[name]
    x = image(3, 4, 9, 8)
    patches, columns = call_of(layer, x).patches(count, generator()), unfolded(layer, x, pad, mode)
    assert patches.shape == (layer.groups, count, columns.shape[-1])
    # The same position in every group at once, found by comparing whole columns.
    equal = (patches.unsqueeze(2) == columns.unsqueeze(1)).all(dim=-1).all(dim=0)
    assert equal.any(dim=1).all()


@pytest.mark.parametrize(
    "layer, x, positions",
    [
        (nn.Conv2d(1, 1, 1), torch.arange(60.0).reshape(3, 1, 4, 5), 60),
        (nn.Conv2d(1, 1, 1, stride=2), torch.arange(126.0).reshape(3, 1, 6, 7), 36),
        (nn.Linear(1, 1), torch.arange(40.0).reshape(40, 1), 40),
    ],
    ids=["1x1", "strided", "linear"],
)
def test_random_patches_are_uniform_over_images_and_positions(layer, x, positions):
    call, stream = call_of(layer, x), generator(1)
    drawn = torch.cat([call.patches(positions - 1, stream).flatten() for _ in range(300)])
    values, counts = drawn.unique(return_counts=True)
    possible = call.patches(EVERYTHING, stream).flatten()
    assert torch.equal(values, possible.sort().values) and len(possible) == positions
    expected = len(drawn) / positions
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    assert statistic < chi2.ppf(0.999, positions - 1)


@pytest.mark.parametrize(
    "layer, shape",
    [(nn.Conv2d(3, 2, 3), (4, 3, 6, 5)), (nn.Conv2d(3, 2, 3), (3, 6, 5)), (nn.Linear(3, 2), (4, 7, 3))],
    ids=["convolution", "unbatched", "linear"],
)
def test_channel_vectors_are_the_inputs_values(layer, shape):
    x = image(*shape)
    vectors = x.reshape(-1, 3) if isinstance(layer, nn.Linear) else x.reshape(-1, *shape[-3:]).movedim(1, -1)
    vectors = vectors.reshape(-1, 3)
    call = call_of(layer, x)
    assert torch.equal(call.channel_vectors(EVERYTHING, generator()), vectors)
    some = call.channel_vectors(9, generator())
    assert some.shape == (9, 3)
    assert (some.unsqueeze(1) == vectors).all(dim=-1).any(dim=1).all()


def test_calls_come_in_order_with_their_names():
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 2, 1)), nn.Flatten())
    network.append(nn.Linear(2 * 49, 3))
    x = image(2, 4, 9, 9)
    seen, skipped = calls_of(network, x)
    assert [name for name, _ in seen] == ["0", "1.1", "3"] and skipped == {}
    assert seen[0][1].input is x
    assert torch.equal(seen[1][1].input, network[0](x).relu())
    assert torch.equal(seen[2][1].input, network[:3](x))


def test_capture_leaves_the_output_alone():
    network, x = nn.Sequential(*(CONVOLUTIONS[k][0] for k in ("depthwise", "same, even"))), image(2, 4, 9, 8)
    seen = []
    with LayerCalls(network, weighted_layers(network), lambda name, call: seen.append(call)):
        captured = network(x)
    assert torch.equal(captured, network(x)) and len(seen) == 2
    assert all(isinstance(call, LayerCall) for call in seen)


@pytest.mark.parametrize("where", ["visit", "forward"])
def test_hooks_are_gone_after_an_exception(where):
    class Broken(nn.Conv2d):
        def forward(self, x):
            super().forward(x)
            if where == "forward" and x.sum() == 0:
                raise RuntimeError("half-way")
            return x

    def visit(name, call):
        seen.append(name)
        if where == "visit" and len(seen) == 3:
            raise RuntimeError("half-way")

    seen, network = [], nn.Sequential(nn.Conv2d(4, 4, 1), Broken(4, 4, 1))
    nn.init.zeros_(network[0].bias)
    with pytest.raises(RuntimeError, match="half-way"), LayerCalls(network, weighted_layers(network), visit):
        network(image(1, 4, 3, 3))
        network(torch.zeros(1, 4, 3, 3))
    assert not has_hooks(network)
    before = len(seen)
    network(image(1, 4, 3, 3))
    assert len(seen) == before  # the function mode is off too


def test_an_exception_the_network_catches_does_not_mislead_the_next_call():
    class Retrying(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3)

        def forward(self, x):
            try:
                self.conv(x[:, :1])  # wrong number of channels
            except RuntimeError:
                x = F.conv2d(x, self.conv.weight)
            return x

    _, skipped = calls_of(Retrying(), image(1, 4, 5, 5))
    assert list(skipped) == ["conv.weight"] and "outside" in skipped["conv.weight"]


class Odd(nn.Module):
    """One well-behaved layer and one of each kind that cannot be quantized by its input."""

    def __init__(self):
        super().__init__()
        self.good = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.borrowed = nn.Conv2d(4, 4, 1)
        self.line = nn.Conv1d(4, 4, 1)
        self.loose = nn.Parameter(torch.ones(4, 4, 1, 1))

    def forward(self, x):
        x = self.up(self.good(x))
        x = F.conv2d(x, self.borrowed.weight) + F.conv2d(x, self.loose)
        return self.line(x.flatten(2))


@pytest.mark.parametrize(
    "name, reason",
    [
        ("up.weight", "transposed convolution"),
        ("borrowed.weight", "outside"),
        ("line.weight", "1-D convolution"),
        ("loose", "not the weight"),
    ],
)
def test_other_uses_of_weights_are_named(name, reason):
    seen, skipped = calls_of(Odd(), image(1, 4, 6, 6))
    assert [layer for layer, _ in seen] == ["good"]
    assert set(skipped) == {"up.weight", "borrowed.weight", "line.weight", "loose"}
    assert reason in skipped[name]


# Ranges and random streams


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_range_of_what_a_layer_reads(layout):
    x = image(2, 3, 5, 4).to(memory_format=layout)
    assert finite_range("a", x) == (x.min().item(), x.max().item())
    for value in (float("nan"), float("inf"), -float("inf")):
        x[1, 2, 3, 0] = value
        with pytest.raises(InputError, match="layer a "):
            finite_range("a", x)


def test_layers_draw_from_streams_of_their_own():
    network = nn.ModuleDict({"a": nn.Conv2d(4, 4, 1), "b": nn.Linear(2, 2)})
    numbers = [
        torch.randint(10**9, (4,), generator=layer_generators(network, stream, seed)[name]).tolist()
        for stream in ("{}", "{}/input")
        for name in ("a", "b")
        for seed in (0, 1)
    ]
    assert len({tuple(numbers_of_one) for numbers_of_one in numbers}) == 8
    alone = nn.ModuleDict({"b": network["b"]})
    again = torch.randint(10**9, (4,), generator=layer_generators(alone, "{}", 1)["b"]).tolist()
    assert again == numbers[3]
