"""Quantized layers against the same layer run with dequantized weights."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitsplit.grid import Grid
from bitsplit.layers.inputs import InputQuantizer
from bitsplit.layers.quantized import (
    QuantizedLayer,
    put_input_quantizers,
    put_weights,
    replace_module,
    wrap_layer,
)


class StaticSame(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x, gain=1.0):
        return gain * F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 0, 1, self.groups)


LAYERS = {
    "plain": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "no bias": lambda: nn.Conv2d(4, 6, 3, stride=2, bias=False),
    "groups": lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "own forward": lambda: StaticSame(4, 6, 2, groups=2),
    "linear": lambda: nn.Linear(8, 5),
    "linear, no bias": lambda: nn.Linear(8, 5, bias=False),
}


def made(name):
    """(layer, codes of its weight's shape, scale of every output channel, input)."""
    torch.manual_seed(0)
    layer, random = LAYERS[name](), np.random.default_rng(1)
    codes = torch.tensor(random.integers(-7, 8, layer.weight.shape), dtype=torch.int8)
    scale = torch.tensor(random.uniform(0.01, 0.1, len(codes)), dtype=torch.float32)
    return layer, codes, scale, torch.tensor(random.standard_normal((2, 4, 8, 8)), dtype=torch.float32)


def with_codes(layer, codes, scale, offset=None, wbits=4):
    """The layer with integer weights."""
    quantized = QuantizedLayer(layer)
    quantized.put(wbits, codes, scale, offset)
    return quantized


def dequantized(codes, scale):
    """Weights, channel by channel."""
    return torch.stack([channel.float() * step for channel, step in zip(codes, scale, strict=True)])


# Quantized layers


@pytest.mark.parametrize("name", LAYERS)
def test_runs_as_the_layer_with_dequantized_weights(name):
    layer, codes, scale, x = made(name)
    expected = copy.deepcopy(layer)
    expected.weight.data = dequantized(codes, scale)
    quantized = with_codes(layer, codes, scale)
    with torch.no_grad():
        assert torch.equal(quantized(x), expected(x))
    assert quantized.codes.dtype == torch.int8 and torch.equal(quantized.codes, codes)
    assert torch.equal(quantized.scale, scale)
    assert "weight" not in dict(layer.named_parameters())


@pytest.mark.parametrize("name", ["groups", "depthwise", "linear"])
def test_codes_may_come_by_group(name):
    layer, codes, scale, x = made(name)
    groups = getattr(layer, "groups", 1)
    grouped = with_codes(copy.deepcopy(layer), codes.reshape(groups, len(codes) // groups, -1), scale.view(groups, -1))
    assert torch.equal(grouped(x), with_codes(layer, codes, scale)(x))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("signed", [True, False])
def test_input_is_rounded_to_the_grid(name, signed):
    layer, codes, scale, x = made(name)
    expected, step, low, high = copy.deepcopy(layer), 0.25, -7 if signed else 0, 7 if signed else 15
    rounded = torch.tensor(np.clip(np.rint(x.numpy() / step), low, high) * step, dtype=torch.float32)
    quantized = QuantizedLayer(layer)
    quantized.input_quantizer = InputQuantizer(Grid(4, signed), torch.tensor(step))
    before = x.clone()
    assert torch.equal(quantized(x), expected(rounded))
    assert torch.equal(x, before)
    assert torch.equal(quantized.input_quantizer(x), rounded)


def test_without_codes_the_weights_stay_in_floating_point():
    layer, _, _, x = made("plain")
    expected = layer(x)
    quantized = QuantizedLayer(layer)
    assert quantized.codes is None and quantized.scale is None and quantized.offset is None
    assert quantized.layer is layer and isinstance(layer.weight, nn.Parameter)
    assert torch.equal(quantized(x), expected)


def test_forward_passes_further_arguments_on():
    layer, codes, scale, x = made("own forward")
    quantized = with_codes(layer, codes, scale)
    assert torch.equal(quantized(x, gain=2.0), 2 * quantized(x))
    assert torch.equal(quantized(x, 2.0), 2 * quantized(x))


def test_attributes_fall_through_to_the_layer():
    layer, codes, scale, _ = made("plain")
    layer.note = "kept"
    quantized = with_codes(layer, codes, scale)
    assert quantized.stride == (1, 1) and quantized.out_channels == 6 and quantized.note == "kept"
    assert torch.equal(quantized.weight, dequantized(codes, scale))
    assert quantized.bias is layer.bias
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = quantized.no_such_thing


def test_state_holds_the_integers_and_copies_are_equal():
    layer, codes, scale, x = made("plain")
    quantized = with_codes(layer, codes, scale)
    quantized.input_quantizer = InputQuantizer(Grid(8), torch.tensor(0.1))
    assert set(quantized.state_dict()) == {"codes", "scale", "layer.bias", "input_quantizer.scale"}
    assert torch.equal(copy.deepcopy(quantized)(x), quantized(x))


def test_replace_module_in_every_parent():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            shared = nn.Conv2d(2, 2, 1)
            self.left, self.right = nn.Sequential(shared, nn.ReLU()), nn.ModuleDict({"conv": shared})
            self.direct, self.other = shared, nn.Conv2d(2, 2, 1)

    network = Twice()
    old, other = network.direct, network.other
    new = QuantizedLayer(old)
    replace_module(network, old, new)
    assert network.left[0] is new and network.right["conv"] is new and network.direct is new
    assert network.other is other and new.layer is old


# Offsets and codes put in later


def shifted(name):
    """`made`, with an offset of every output channel."""
    layer, codes, scale, x = made(name)
    return layer, codes, scale, torch.linspace(-0.3, 0.4, len(codes)), x


@pytest.mark.parametrize("name", LAYERS)
def test_offset_is_added_to_every_weight_of_its_channel(name):
    layer, codes, scale, offset, x = shifted(name)
    expected = copy.deepcopy(layer)
    weight = np.float32(codes.numpy()) * scale.numpy().reshape(-1, *[1] * (codes.dim() - 1))
    expected.weight.data = torch.tensor(weight + offset.numpy().reshape(-1, *[1] * (codes.dim() - 1)))
    quantized = with_codes(layer, codes, scale, offset)
    with torch.no_grad():
        torch.testing.assert_close(quantized(x), expected(x))
    assert torch.equal(quantized.offset, offset) and torch.equal(quantized.codes, codes)


def test_put_replaces_the_integer_weights():
    layer, codes, scale, offset, x = shifted("groups")
    fresh = with_codes(copy.deepcopy(layer), codes, scale, offset)
    quantized = with_codes(layer, -codes, scale * 3)
    held = quantized.layer.weight
    assert quantized.offset is None and not torch.equal(quantized(x), fresh(x))
    quantized.put(4, codes.view(2, 3, -1).double(), scale.view(2, 3), offset.view(2, 3).requires_grad_())
    assert torch.equal(quantized(x), fresh(x)) and quantized.codes.dtype == torch.int8
    assert quantized.layer.weight is held  # the tensor that twins share is changed in place
    assert quantized.offset.shape == (6,) and not quantized.offset.requires_grad
    quantized.put(6, codes, scale, None)
    assert quantized.offset is None and torch.equal(quantized.weight, dequantized(codes, scale))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scale_and_offset_take_the_weights_precision(dtype):
    layer, codes, scale, offset, x = shifted("plain")
    quantized = with_codes(layer.to(dtype), codes, scale.double(), offset.double())
    assert quantized.scale.dtype == quantized.offset.dtype == quantized.weight.dtype == dtype
    assert quantized(x.to(dtype)).dtype == dtype


@pytest.mark.parametrize("with_offset", [True, False])
def test_state_with_offset_makes_the_weight_again(with_offset):
    layer, codes, scale, offset, x = shifted("plain")
    quantized = with_codes(layer, codes, scale, offset if with_offset else None)
    other = with_codes(made("plain")[0], codes * 0, scale * 2, offset * 5 if with_offset else None)
    other.load_state_dict(quantized.state_dict())
    assert ("offset" in quantized.state_dict()) == with_offset and "layer.weight" not in quantized.state_dict()
    assert torch.equal(other.weight, quantized.weight) and torch.equal(other(x), quantized(x))
    assert torch.equal(copy.deepcopy(quantized)(x), quantized(x))
    double = copy.deepcopy(quantized).to(torch.float64)
    torch.testing.assert_close(double(x.double()), quantized(x).double(), rtol=1e-4, atol=1e-5)


# In a network


class Tied(nn.Module):
    """Two modules that share a weight, one of them held twice, and a layer beside them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.token, self.tied, self.other = (nn.Linear(4, 4, bias=bias) for bias in (True, False, True))
        self.tied.weight = self.token.weight
        self.again = nn.Sequential(self.token)

    def forward(self, x):
        return self.other(self.again(self.tied(self.token(x))))


def test_wrapped_layers_are_in_floating_point_wherever_their_weight_is_used():
    network, x = Tied(), torch.randn(3, 4)
    expected, token, tied, other = network(x), network.token, network.tied, network.other
    wrappers = wrap_layer(network, tied)
    assert [wrapper.layer for wrapper in wrappers] == [token, tied]
    assert network.token is network.again[0] is wrappers[0] and network.tied is wrappers[1] and network.other is other
    assert all(wrapper.codes is None and wrapper.wbits == 32 for wrapper in wrappers)
    assert torch.equal(network(x), expected)


def test_integer_weights_are_shared_by_all_that_shared_the_weight():
    network, codes, scale = Tied(), torch.arange(-8, 8).view(1, 4, 4), torch.full((1, 4), 0.5)
    wrappers = put_weights(network, network.tied, 5, codes, scale)
    assert [network.token, network.tied] == wrappers and network.token.weight is network.tied.weight
    assert [wrapper.wbits for wrapper in wrappers] == [5, 5]
    network.token.put(5, -codes, scale)
    assert torch.equal(network.tied.weight, -codes[0] * 0.5)


def test_quantizers_go_to_every_layer_of_the_weight():
    network = Tied()
    wrappers = wrap_layer(network, network.token)
    (other,) = wrap_layer(network, network.other)
    single, second = (InputQuantizer(Grid(4), torch.tensor(scale)) for scale in (0.5, 0.25))
    put_input_quantizers(network, wrappers[0].layer.weight, [single])
    assert all(wrapper.input_quantizer is single for wrapper in wrappers) and other.input_quantizer is None
    put_input_quantizers(network, wrappers[0].layer.weight, [single, second])
    assert all(list(wrapper.input_quantizer) == [single, second] for wrapper in wrappers)
    assert wrappers[0].input_quantizer is wrappers[1].input_quantizer and other.input_quantizer is None


def test_representations():
    layer, codes, _, _ = made("plain")
    scale = torch.linspace(0.25, 0.75, 6)
    quantized = with_codes(layer, codes, scale, wbits=3)
    assert "weight=(6, 4, 3, 3), wbits=3, scales 0.25 to 0.75" in repr(quantized)
    quantized.put(5, codes, 2 * scale)
    assert "weight=(6, 4, 3, 3), wbits=5, scales 0.5 to 1.5" in repr(quantized)
    floating = repr(QuantizedLayer(nn.Linear(3, 2)))
    assert "weight=(2, 3) in floating point" in floating and "wbits" not in floating
    assert "offset" not in QuantizedLayer(nn.Linear(2, 2)).state_dict()


def test_a_layer_that_copies_itself_is_copied_with_its_codes():
    class Copied(nn.Conv2d):
        def __deepcopy__(self, memo):
            again = Copied(self.in_channels, self.out_channels, self.kernel_size)
            again.weight.data.copy_(self.weight)
            return again

    network = nn.Sequential(Copied(2, 3, 1))
    put_weights(network, network[0], 4, torch.ones(1, 3, 2, dtype=torch.int8), torch.ones(1, 3))
    again = copy.deepcopy(network)
    assert isinstance(again[0], QuantizedLayer) and torch.equal(again[0].codes, network[0].codes)
