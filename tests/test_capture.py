"""Captured patches against torch's own unfold, and what the capture refuses to call a layer's input."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chi2
from torch import nn

from bitsplit.capture import LayerCall, LayerCalls
from bitsplit.stats import weighted_layers

torch.manual_seed(0)  # the modules below are made once, at import
EVERYTHING = 10**6


class StaticSame(nn.Conv2d):
    """Pads by itself, on the far sides only, before a functional convolution."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 2, 0, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Keywords(nn.Conv2d):
    """Calls the functional convolution with keywords and defaults."""

    def forward(self, x):
        return F.conv2d(input=x, weight=self.weight, padding=1, groups=2)


# name: (module, how its input is padded (left, right, top, bottom), padding mode)
CONVOLUTIONS = {
    "plain": (nn.Conv2d(4, 6, 3), (0, 0, 0, 0), "constant"),
    "1x1": (nn.Conv2d(4, 6, 1, bias=False), (0, 0, 0, 0), "constant"),
    "1x1 strided": (nn.Conv2d(4, 6, 1, stride=2), (0, 0, 0, 0), "constant"),
    "stride": (nn.Conv2d(4, 6, 3, stride=2), (0, 0, 0, 0), "constant"),
    "stride, padding": (nn.Conv2d(4, 6, 3, stride=(2, 3), padding=(1, 2)), (2, 2, 1, 1), "constant"),
    "asymmetric kernel": (nn.Conv2d(4, 6, (5, 2), padding=(2, 1)), (1, 1, 2, 2), "constant"),
    "dilation": (nn.Conv2d(4, 6, 3, dilation=(2, 3), padding=2), (2, 2, 2, 2), "constant"),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (1, 1, 1, 1), "constant"),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1, stride=2), (1, 1, 1, 1), "constant"),
    "depthwise, multiplied": (nn.Conv2d(4, 8, 5, groups=4, padding=2), (2, 2, 2, 2), "constant"),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), (0, 0, 0, 0), "constant"),
    "same, odd": (nn.Conv2d(4, 6, (3, 5), padding="same"), (2, 2, 1, 1), "constant"),
    "same, even": (nn.Conv2d(4, 6, (2, 4), padding="same"), (1, 2, 0, 1), "constant"),
    "same, dilated": (nn.Conv2d(4, 6, (3, 2), dilation=(2, 3), padding="same"), (1, 2, 2, 2), "constant"),
    "reflect": (nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect"), (2, 2, 1, 1), "reflect"),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", stride=2), (1, 1, 1, 1), "circular"),
    "replicate, same": (nn.Conv2d(4, 6, 4, padding="same", padding_mode="replicate"), (1, 2, 1, 2), "replicate"),
    "own forward": (StaticSame(4, 6, (2, 3), stride=2), (0, 2, 0, 1), "constant"),
    "keywords": (Keywords(4, 6, 3, groups=2), (1, 1, 1, 1), "constant"),
}


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


def unfolded(layer, x, pad, mode):
    """torch's im2col matrix by group, (G, positions, N)."""
    x = F.pad(x, pad, mode=mode)
    columns = F.unfold(x, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
    columns = columns.unflatten(1, (layer.groups, -1))  # (B, G, N, L)
    return columns.permute(1, 0, 3, 2).flatten(1, 2)


def picture(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape), dtype=torch.float32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def has_hooks(network):
    return any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("size", [(9, 8), (7, 12)])
def test_all_patches_are_the_unfolded_matrix(name, size):
    layer, pad, mode = CONVOLUTIONS[name]
    x = picture(3, 4, *size)
    patches = call_of(layer, x).patches(EVERYTHING, generator())
    assert torch.equal(patches, unfolded(layer, x, pad, mode))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_times_weight_are_the_output(name):
    layer, x = CONVOLUTIONS[name][0], picture(2, 4, 9, 8)
    call = call_of(layer, x)
    weight = layer.weight.reshape(layer.groups, -1, call.patches(1, generator()).shape[-1])
    products = call.patches(EVERYTHING, generator()) @ weight.mT  # (G, positions, M)
    output = layer(x) - (0 if layer.bias is None or name == "keywords" else layer.bias[:, None, None])
    expected = output.movedim(1, -1).reshape(-1, layer.groups, weight.shape[1]).movedim(1, 0)
    torch.testing.assert_close(products, expected, rtol=1e-4, atol=1e-5)


def test_unbatched_picture():
    layer, x = nn.Conv2d(4, 6, 3, padding=1), picture(4, 9, 8)
    patches = call_of(layer, x).patches(EVERYTHING, generator())
    assert torch.equal(patches, unfolded(layer, x.unsqueeze(0), (1, 1, 1, 1), "constant"))


def test_channels_last_picture():
    layer, x = nn.Conv2d(4, 6, 3, padding=1, groups=2), picture(2, 4, 9, 8)
    patches = call_of(layer, x.to(memory_format=torch.channels_last)).patches(EVERYTHING, generator())
    assert torch.equal(patches, unfolded(layer, x, (1, 1, 1, 1), "constant"))


@pytest.mark.parametrize("shape", [(5,), (7, 5), (3, 4, 5)])
def test_linear_rows(shape):
    x = picture(*shape)
    patches = call_of(nn.Linear(5, 2), x).patches(EVERYTHING, generator())
    assert torch.equal(patches, x.reshape(1, -1, 5))


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("count", [1, 11])
def test_random_patches_are_columns_of_the_unfolded_matrix(name, count):
    layer, pad, mode = CONVOLUTIONS[name]
    x = picture(3, 4, 9, 8)
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
def test_random_patches_are_uniform_over_pictures_and_positions(layer, x, positions):
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
    x = picture(*shape)
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
    x = picture(2, 4, 9, 9)
    seen, skipped = calls_of(network, x)
    assert [name for name, _ in seen] == ["0", "1.1", "3"] and skipped == {}
    assert seen[0][1].input is x
    assert torch.equal(seen[1][1].input, network[0](x).relu())
    assert torch.equal(seen[2][1].input, network[:3](x))


def test_capture_leaves_the_output_alone():
    network, x = nn.Sequential(*(CONVOLUTIONS[k][0] for k in ("depthwise", "same, even"))), picture(2, 4, 9, 8)
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
        network(picture(1, 4, 3, 3))
        network(torch.zeros(1, 4, 3, 3))
    assert not has_hooks(network)
    before = len(seen)
    network(picture(1, 4, 3, 3))
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

    _, skipped = calls_of(Retrying(), picture(1, 4, 5, 5))
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
    seen, skipped = calls_of(Odd(), picture(1, 4, 6, 6))
    assert [layer for layer, _ in seen] == ["good"]
    assert set(skipped) == {"up.weight", "borrowed.weight", "line.weight", "loose"}
    assert reason in skipped[name]
