"""ACIQ-Mix: the allotment's budget, bounds and shape; what becomes of channels without bits; equality with ACIQ."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import BATCHES, NO_NORM, Residual, lively, outputs, quantized_layers

import bitsplit
from bitsplit.methods import named
from bitsplit.methods.aciq_mix import ACIQMix, allotted_bits
from bitsplit.statistics.moments import LayerStats
from bitsplit.statistics.samples import InputSamples


@st.composite
def spreads(draw):
    """1 to 600 spreads: nearly equal ones, ratios beyond any float, zeros."""
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    count, decades = draw(st.integers(1, 600)), draw(st.sampled_from([0, 0.1, 1, 5, 18]))
    sigma = 10.0 ** random.uniform(-decades, decades, count) * 10.0 ** draw(st.sampled_from([-15, 0, 15]))
    sigma[random.random(count) < draw(st.sampled_from([0, 0.2, 1]))] = 0
    if draw(st.booleans()):
        sigma = np.repeat(sigma, 2)[:count]  # ties
    return torch.tensor(sigma, dtype=draw(st.sampled_from([torch.float32, torch.float64])))


@settings(deadline=None, max_examples=150, derandomize=True)
@given(sigma=spreads(), quota=st.integers(0, 8))
def test_allotment_keeps_its_budget_its_bounds_and_the_order(sigma, quota):
    bits = allotted_bits(sigma, quota)
    assert bits.shape == sigma.shape and bits.dtype == sigma.dtype
    assert torch.equal(bits, bits.round()) and bits.min() >= 0 and bits.max() <= 8
    assert bits.sum().item() == quota * len(sigma)
    order = torch.argsort(sigma, stable=True)
    assert (bits[order].diff()[sigma[order].diff() > 0] >= 0).all()
    assert bits.max() - bits.min() <= 1 or sigma.max() > sigma.min()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 300), quota=st.integers(3, 5))
def test_inside_the_bounds_levels_follow_the_power_two_thirds(seed, count, quota):
    sigma = 2.0 ** np.random.default_rng(seed).uniform(-1.5, 1.5, count)
    bits = allotted_bits(torch.tensor(sigma), quota).numpy()
    assert bits.min() > 0 and bits.max() < 8  # or the sample would not be inside
    rounding = bits - np.log2(sigma ** (2 / 3))
    assert rounding.max() - rounding.min() <= 1 + 1e-9


@pytest.mark.parametrize(
    "exponents, quota, expected",
    [
        ([-2, -1, 0, 1, 2], 4, [2, 3, 4, 5, 6]),
        ([5, 5, 5, 5], 3, [3, 3, 3, 3]),
        ([0, 2.5], 2, [1, 3]),  # ¾ and 3¼: the largest remainder is rounded up
        ([-9, -9, 0], 4, [2, 2, 8]),
        ([9, 0, -9], 3, [8, 1, 0]),
    ],
)
def test_allotment_by_hand(exponents, quota, expected):
    sigma = torch.tensor([2.0 ** (1.5 * k) for k in exponents], dtype=torch.float64)
    assert allotted_bits(sigma, quota).tolist() == expected


def restored(codes):
    return codes.codes * codes.scale.unsqueeze(-1) + codes.offset.unsqueeze(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_channels_without_bits_become_their_mean(dtype):
    random = np.random.default_rng(0)
    weight = random.standard_normal((2, 3, 40)) * np.array([[1, 1, 2], [1e-9, 1, 1e-9]])[..., None] + 0.5
    weight = torch.tensor(weight, dtype=dtype)
    sigma = weight.std(dim=-1, correction=0)
    bits = allotted_bits(sigma.flatten(), 4).view(2, 3)
    assert bits[1].tolist() == [0, 6, 0]
    codes = ACIQMix().solve_weights(LayerStats.weight_space(weight), weight, 4)
    assert not codes.codes[bits == 0].any()
    flat = weight.mean(dim=-1, keepdim=True).expand_as(weight)
    torch.testing.assert_close(restored(codes)[bits == 0], flat[bits == 0])
    high = (2 ** (bits - 1) - 1).clamp_min(0)
    assert (codes.codes.abs().amax(dim=-1) == high).all()  # Gaussian channels: something is clipped in each


def test_a_layer_of_zeros_has_bits_and_codes():
    for dtype in (torch.float32, torch.float64):
        weight = torch.zeros(1, 4, 9, dtype=dtype)
        codes = ACIQMix().solve_weights(LayerStats.weight_space(weight), weight, 4)
        assert not restored(codes).any() and codes.scale.isfinite().all()
        samples = InputSamples(torch.zeros(50, 4, dtype=dtype), 0, 0)
        grid = ACIQMix().input_grid(samples, 3, signed=False)
        assert grid.bits.tolist() == [3] * 4
        assert ACIQMix().calibrate_activations(samples, grid).tolist() == [1] * 4


@pytest.mark.parametrize("signed", [True, False])
def test_every_channel_is_quantized_as_aciq_would_with_its_bits(signed):
    random = np.random.default_rng(1)
    values = torch.tensor(random.laplace(0, 1, (3000, 5)) * 4.0 ** np.arange(-2, 3))
    samples = InputSamples(values if signed else values.relu(), values.min().item(), values.max().item())
    grid = ACIQMix().input_grid(samples, 4, signed)
    assert grid.signed == signed and grid.bits.mean() == 4 and len(grid.bits.unique()) > 2
    scale = ACIQMix().calibrate_activations(samples, grid)
    aciq = named("aciq")
    for channel, bits in enumerate(grid.bits.int().tolist()):
        alone = InputSamples(samples.values[:, channel : channel + 1], 0, 0)
        assert scale[channel] == pytest.approx(
            aciq.calibrate_activations(alone, aciq.input_grid(alone, bits, signed)).item(), rel=1e-9
        )


def test_different_channels_are_quantized_better_than_by_aciq():
    random = np.random.default_rng(2)
    weight = torch.tensor(random.standard_normal((1, 32, 100)) * 2.0 ** random.uniform(-4, 4, (1, 32, 1)))
    samples = InputSamples(torch.tensor(random.laplace(0, 1, (4000, 32))) * weight.std(dim=-1), -1, 1)
    weights, inputs = [], []
    for method in (named("aciq_mix"), named("aciq")):
        solution = method.solve_weights(LayerStats.weight_space(weight), weight, 4)
        weights.append(((restored(solution) - weight) ** 2).sum().item())
        grid = method.input_grid(samples, 4, signed=True)
        scale = method.calibrate_activations(samples, grid)
        inputs.append(((grid.quantize(samples.values, scale) * scale - samples.values) ** 2).sum().item())
    assert weights[0] < 0.6 * weights[1] and inputs[0] < 0.6 * inputs[1]


def test_at_eight_bits_a_network_is_that_of_aciq():
    network = lively(Residual())
    mix, aciq = (bitsplit.quantize(network, BATCHES, 8, 8, method, settings=NO_NORM) for method in ("aciq_mix", "aciq"))
    ours, theirs = quantized_layers(mix), quantized_layers(aciq)
    assert list(ours) == list(theirs) and len(ours) == 8
    for name in ours:
        for part in ("codes", "scale", "offset"):
            assert torch.equal(getattr(ours[name], part), getattr(theirs[name], part)), (name, part)
        if name != "stem":
            assert torch.equal(ours[name].input_quantizer.scale, theirs[name].input_quantizer.scale)
            assert ours[name].input_quantizer.bits.unique().tolist() == [8]
    assert torch.equal(outputs(mix), outputs(aciq))


def test_channels_of_a_network_have_the_asked_bits_on_average():
    network = lively(Residual())
    quantized = bitsplit.quantize(network, BATCHES, 4, 3, "aciq_mix", settings=NO_NORM)
    allotted = set()
    for name, layer in quantized_layers(quantized).items():
        if name == "stem":
            continue
        bits = layer.input_quantizer.bits
        assert bits.mean() == (8 if name == "head" else 3)
        assert bits.shape == ((8 * 4 * 6,) if name == "head" else (layer.in_channels, 1, 1))
        allotted |= set(bits.flatten().tolist())
    assert len(allotted) > 2
    assert (quantized.report["abits"][1:-1] == 3).all()
