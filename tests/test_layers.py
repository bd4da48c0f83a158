"""Quantized layers against the same layer run with dequantized weights."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitsplit.grid import Grid
from bitsplit.layers import (
    InputQuantizer,
    QuantizedLayer,
    replace_module,
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


def dequantized(codes, scale):
    """Weights, channel by channel."""
    return torch.stack([channel.float() * step for channel, step in zip(codes, scale, strict=True)])


# Quantized layers


@pytest.mark.parametrize("name", LAYERS)
def test_runs_as_the_layer_with_dequantized_weights(name):
    layer, codes, scale, x = made(name)
    expected = copy.deepcopy(layer)
    expected.weight.data = dequantized(codes, scale)
    quantized = QuantizedLayer(layer, codes, scale)
    with torch.no_grad():
        assert torch.equal(quantized(x), expected(x))
    assert quantized.codes.dtype == torch.int8 and torch.equal(quantized.codes, codes)
    assert torch.equal(quantized.scale, scale)
    assert "weight" not in dict(layer.named_parameters())


@pytest.mark.parametrize("name", ["groups", "depthwise", "linear"])
def test_codes_may_come_by_group(name):
    layer, codes, scale, x = made(name)
    groups = getattr(layer, "groups", 1)
    grouped = QuantizedLayer(
        copy.deepcopy(layer), codes.reshape(groups, len(codes) // groups, -1), scale.view(groups, -1)
    )
    assert torch.equal(grouped(x), QuantizedLayer(layer, codes, scale)(x))


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
    quantized = QuantizedLayer(layer, codes, scale)
    assert torch.equal(quantized(x, gain=2.0), 2 * quantized(x))
    assert torch.equal(quantized(x, 2.0), 2 * quantized(x))


def test_attributes_fall_through_to_the_layer():
    layer, codes, scale, _ = made("plain")
    layer.note = "kept"
    quantized = QuantizedLayer(layer, codes, scale)
    assert quantized.stride == (1, 1) and quantized.out_channels == 6 and quantized.note == "kept"
    assert torch.equal(quantized.weight, dequantized(codes, scale))
    assert quantized.bias is layer.bias
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = quantized.no_such_thing


def test_state_holds_the_integers_and_copies_are_equal():
    layer, codes, scale, x = made("plain")
    quantized = QuantizedLayer(layer, codes, scale)
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
    quantized = QuantizedLayer(layer, codes, scale, offset)
    with torch.no_grad():
        torch.testing.assert_close(quantized(x), expected(x))
    assert torch.equal(quantized.offset, offset) and torch.equal(quantized.codes, codes)


def test_put_replaces_the_integer_weights():
    layer, codes, scale, offset, x = shifted("groups")
    fresh = QuantizedLayer(copy.deepcopy(layer), codes, scale, offset)
    quantized = QuantizedLayer(layer, -codes, scale * 3)
    held = quantized.layer.weight
    assert quantized.offset is None and not torch.equal(quantized(x), fresh(x))
    quantized.put(codes.view(2, 3, -1).double(), scale.view(2, 3), offset.view(2, 3).requires_grad_())
    assert torch.equal(quantized(x), fresh(x)) and quantized.codes.dtype == torch.int8
    assert quantized.layer.weight is held  # the tensor that twins share is changed in place
    assert quantized.offset.shape == (6,) and not quantized.offset.requires_grad
    quantized.put(codes, scale, None)
    assert quantized.offset is None and torch.equal(quantized.weight, dequantized(codes, scale))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scale_and_offset_take_the_weights_precision(dtype):
    layer, codes, scale, offset, x = shifted("plain")
    quantized = QuantizedLayer(layer.to(dtype), codes, scale.double(), offset.double())
    assert quantized.scale.dtype == quantized.offset.dtype == quantized.weight.dtype == dtype
    assert quantized(x.to(dtype)).dtype == dtype


@pytest.mark.parametrize("with_offset", [True, False])
def test_state_with_offset_makes_the_weight_again(with_offset):
    layer, codes, scale, offset, x = shifted("plain")
    quantized = QuantizedLayer(layer, codes, scale, offset if with_offset else None)
    other = QuantizedLayer(made("plain")[0], codes * 0, scale * 2, offset * 5 if with_offset else None)
    other.load_state_dict(quantized.state_dict())
    assert ("offset" in quantized.state_dict()) == with_offset and "layer.weight" not in quantized.state_dict()
    assert torch.equal(other.weight, quantized.weight) and torch.equal(other(x), quantized(x))
    assert torch.equal(copy.deepcopy(quantized)(x), quantized(x))
    double = copy.deepcopy(quantized).to(torch.float64)
    torch.testing.assert_close(double(x.double()), quantized(x).double(), rtol=1e-4, atol=1e-5)


# Inputs quantized channel by channel

INPUTS = {
    "convolution": ((2, 4, 5, 3), 2, 1),
    "unbatched convolution": ((4, 5, 3), 2, 0),
    "linear": ((7, 4), 0, 1),
    "linear on a sequence": ((2, 5, 4), 0, 2),
    "linear on a vector": ((4,), 0, 0),
}  # shape, positions, the channels' axis


def by_channel(kind, signed, own_bits, seed=0):
    """(values, quantizer, what it must return by a loop over the channels in numpy)."""
    shape, positions, axis = INPUTS[kind]
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 3
    scale, bits = np.float32([0.1, 0.25, 0.5, 1.5]), [4, 0, 2, 3] if own_bits else [3] * 4
    expected = np.empty_like(values)
    for channel in range(4):
        at = (slice(None),) * axis + (channel,)
        high = 2 ** max(bits[channel] - 1, 0) - 1 if signed else 2 ** bits[channel] - 1
        codes = np.clip(np.rint(values[at] / scale[channel]), -high if signed else 0, high)
        expected[at] = codes * scale[channel]
    grid = Grid(torch.tensor(bits, dtype=torch.float64) if own_bits else 3, signed)
    return torch.tensor(values), InputQuantizer(grid, torch.tensor(scale), positions), torch.tensor(expected)


@pytest.mark.parametrize("own_bits", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", INPUTS)
def test_every_channel_is_rounded_at_its_own_scale(kind, signed, own_bits):
    values, quantizer, expected = by_channel(kind, signed, own_bits)
    before = values.clone()
    assert torch.equal(quantizer(values), expected)
    assert torch.equal(values, before)
    assert len(expected.unique()) > 2


@pytest.mark.parametrize("own_bits", [True, False])
@pytest.mark.parametrize("kind", INPUTS)
def test_channels_survive_state_copies_and_moves(kind, own_bits):
    values, quantizer, expected = by_channel(kind, False, own_bits)
    assert set(quantizer.state_dict()) == {"scale", "bits"} if own_bits else {"scale"}
    _, other, _ = by_channel(kind, False, own_bits)
    other.scale.mul_(3)
    if own_bits:
        other.bits.fill_(8)
    assert not torch.equal(other(values), expected)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other(values), expected)
    assert torch.equal(copy.deepcopy(quantizer)(values), expected)
    moved = copy.deepcopy(quantizer).to(torch.float64)
    assert moved.scale.dtype == torch.float64
    torch.testing.assert_close(moved(values.double()), expected.double(), rtol=1e-6, atol=0)
    elsewhere = copy.deepcopy(quantizer).to("meta")
    assert elsewhere.scale.is_meta and (not own_bits or elsewhere.bits.is_meta)
    assert elsewhere(values.to("meta")).shape == values.shape


def test_a_scale_alone_has_no_shape_and_can_be_replaced():
    quantizer = InputQuantizer(Grid(4), torch.tensor(0.5, dtype=torch.float64), positions=2)
    assert quantizer.scale.shape == () and quantizer.scale.dtype == torch.float32 and quantizer.bits == 4
    x = torch.randn(2, 3, 4, 4)
    quantizer.scale.copy_(torch.tensor(0.25))
    assert torch.equal(quantizer(x), InputQuantizer(Grid(4), torch.tensor(0.25))(x))
    many = InputQuantizer(Grid(4), torch.full((3,), 0.25), positions=2)
    assert torch.equal(many(x), quantizer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", ["convolution", "linear"])
@pytest.mark.parametrize("channels", [True, False])
def test_the_input_keeps_its_precision(channels, kind, dtype):
    values, quantizer, _ = by_channel(kind, True, own_bits=True)
    if not channels:
        quantizer = InputQuantizer(Grid(4), torch.tensor(0.25))
    assert quantizer(values.to(dtype)).dtype == dtype


def test_representations():
    assert "bits=4, signed=True, scale=0.25" in repr(InputQuantizer(Grid(4), torch.tensor(0.25)))
    mixed = by_channel("convolution", False, own_bits=True)[1]
    assert "bits=mean 2.25, signed=False, scale=4 channels" in repr(mixed)
    assert "offset" not in QuantizedLayer(nn.Linear(2, 2)).state_dict()
