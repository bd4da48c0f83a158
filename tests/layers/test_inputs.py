"""Quantizers of what layers read, against loops over the channels in numpy, and the order of their calls."""

import copy

import numpy as np
import pytest
import torch

from bitsplit.grid import Grid
from bitsplit.layers.inputs import CallQuantizers, InputQuantizer, fake_quantize

# Inputs quantized channel by channel

INPUTS = {
    "convolution": ((2, 4, 5, 3), 2, 1),
    "unbatched convolution": ((4, 5, 3), 2, 0),
    "linear": ((7, 4), 0, 1),
    "linear on a sequence": ((2, 5, 4), 0, 2),
    "linear on a vector": ((4,), 0, 0),
}  # shape, positions, the channels' axis


def by_channel(kind, signed, mixed_bits, seed=0):
    """(values, quantizer, what it must return by a loop over the channels in numpy)."""
    shape, positions, axis = INPUTS[kind]
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 3
    scale, bits = np.float32([0.1, 0.25, 0.5, 1.5]), [4, 0, 2, 3] if mixed_bits else [3] * 4
    expected = np.empty_like(values)
    for channel in range(4):
        at = (slice(None),) * axis + (channel,)
        high = 2 ** max(bits[channel] - 1, 0) - 1 if signed else 2 ** bits[channel] - 1
        codes = np.clip(np.rint(values[at] / scale[channel]), -high if signed else 0, high)
        expected[at] = codes * scale[channel]
    grid = Grid(torch.tensor(bits, dtype=torch.float64) if mixed_bits else 3, signed)
    return torch.tensor(values), InputQuantizer(grid, torch.tensor(scale), positions), torch.tensor(expected)


@pytest.mark.parametrize("mixed_bits", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", INPUTS)
def test_every_channel_is_rounded_at_its_own_scale(kind, signed, mixed_bits):
    values, quantizer, expected = by_channel(kind, signed, mixed_bits)
    before = values.clone()
    assert torch.equal(quantizer(values), expected)
    assert torch.equal(values, before)
    assert len(expected.unique()) > 2


@pytest.mark.parametrize("mixed_bits", [True, False])
@pytest.mark.parametrize("kind", INPUTS)
def test_channels_survive_state_copies_and_moves(kind, mixed_bits):
    values, quantizer, expected = by_channel(kind, False, mixed_bits)
    assert set(quantizer.state_dict()) == {"scale", "bits"} if mixed_bits else {"scale"}
    _, other, _ = by_channel(kind, False, mixed_bits)
    other.scale.mul_(3)
    if mixed_bits:
        other.bits.fill_(8)
    assert not torch.equal(other(values), expected)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other(values), expected)
    assert torch.equal(copy.deepcopy(quantizer)(values), expected)
    moved = copy.deepcopy(quantizer).to(torch.float64)
    assert moved.scale.dtype == torch.float64
    torch.testing.assert_close(moved(values.double()), expected.double(), rtol=1e-6, atol=0)
    elsewhere = copy.deepcopy(quantizer).to("meta")
    assert elsewhere.scale.is_meta and (not mixed_bits or elsewhere.bits.is_meta)
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
    values, quantizer, _ = by_channel(kind, True, mixed_bits=True)
    if not channels:
        quantizer = InputQuantizer(Grid(4), torch.tensor(0.25))
    assert quantizer(values.to(dtype)).dtype == dtype


def test_representations():
    assert "bits=4, signed=True, scale=0.25" in repr(InputQuantizer(Grid(4), torch.tensor(0.25)))
    mixed = by_channel("convolution", False, mixed_bits=True)[1]
    assert "bits=mean 2.25, signed=False, scale=4 channels" in repr(mixed)


# One pass over the memory

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3),
    "every other row": lambda x: x[:, :, ::2],
    "expanded": lambda x: x[:1].expand(5, -1, -1, -1),
    "empty": lambda x: x[:0],
}


@pytest.mark.parametrize("low, high", [(-7, 7), (0, 15), (-127, 127)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fake_quantized_values_of_any_layout(layout, low, high):
    values = LAYOUTS[layout](torch.tensor(np.random.default_rng(0).standard_normal((2, 4, 6, 3)), dtype=torch.float32))
    before = values.clone()
    step = np.float32(0.07)
    expected = np.clip(np.rint(values.numpy() / step), low, high) * step
    assert np.array_equal(fake_quantize(values, 0.07, low, high).numpy(), expected)
    assert torch.equal(values, before)


# One quantizer for each call


def test_calls_take_their_quantizers_in_turn():
    quantizers = [InputQuantizer(Grid(4), torch.tensor(scale)) for scale in (0.5, 0.25, 2.0)]
    calls, x = CallQuantizers(quantizers), torch.linspace(-3, 3, 31)
    expected = [quantizer(x) for quantizer in quantizers]
    for turn in (0, 1, 2, 0, 1):
        assert torch.equal(calls(x), expected[turn])
    calls.restart()
    assert torch.equal(calls(x), expected[0])
    for mode in (calls.eval, calls.train):
        mode()  # after a forward that did not end
        assert torch.equal(calls(x), expected[0])
