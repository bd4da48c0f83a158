"""TensorRT's threshold against a slow transcription of its description, in plain loops."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from bitsplit.grid import Grid
from bitsplit.methods import named
from bitsplit.methods.tensorrt import TensorRT, least_divergent
from bitsplit.statistics.moments import LayerStats
from bitsplit.statistics.samples import InputSamples


def divergence(counts, i, levels):
    """KL(P‖Q) of the threshold after i bins; infinite where Q lacks what P has, or both have the last bin alone."""
    reference = [counts[j] for j in range(i)]
    reference[i - 1] += sum(counts[i:])
    candidate = [0.0] * i
    width = Fraction(i, levels)
    for level in range(levels):
        group = range(math.floor(level * width), math.floor((level + 1) * width))
        occupied = [j for j in group if counts[j] > 0]
        for j in occupied:
            candidate[j] = sum(counts[k] for k in group) / len(occupied)
    total, inside = sum(reference), sum(candidate)
    if not any(counts[: i - 1]):
        return math.inf
    result = 0.0
    for p, q in zip(reference, candidate, strict=True):
        if p > 0 and q == 0:
            return math.inf
        if p > 0:
            result += p / total * math.log((p / total) / (q / inside))
    return result


def slow_divergences(counts, levels):
    counts = [float(count) for count in counts]
    return {i: divergence(counts, i, levels) for i in range(min(levels, len(counts)), len(counts) + 1)}


def histogram(kind, seed, bins):
    random = np.random.default_rng(seed)
    if kind == "exponential":
        values = random.exponential(1, 4000)
    elif kind == "few":  # most bins are empty
        values = random.exponential(1, 60)
    elif kind == "outliers":
        values = np.concatenate([random.exponential(0.2, 3000), random.uniform(8, 20, 5)])
    elif kind == "holes":  # like values that have been rounded before
        values = np.round(random.exponential(1, 3000) * 12) / 12
    elif kind == "far from zero":
        values = 1 + random.exponential(1, 3000)
    else:
        values = random.integers(0, 2, bins).repeat(random.integers(0, 50, bins)).cumsum()
    return np.histogram(values, bins, (0, values.max()))[0].astype(float)


@pytest.mark.parametrize("kind", ["exponential", "few", "outliers", "holes", "rough", "far from zero"])
@pytest.mark.parametrize("levels, bins", [(4, 96), (8, 128), (16, 160), (128, 300), (256, 300)])
def test_threshold_is_that_of_the_slow_transcription(kind, levels, bins):
    counts = histogram(kind, levels, bins)
    slow = slow_divergences(counts, levels)
    least = min(slow.values())
    bins_below = least_divergent(counts, levels)
    assert slow[bins_below] <= least + 1e-12
    if sum(value <= least + 1e-9 for value in slow.values()) == 1:
        assert bins_below == min(slow, key=slow.get)


@pytest.mark.parametrize("levels", [8, 16, 128, 256])
def test_one_far_value_does_not_hold_the_threshold(levels):
    counts = np.zeros(512)
    counts[:300], counts[-1] = np.linspace(2000, 10, 300).astype(int), 1
    bins_below = least_divergent(counts, levels)
    assert levels <= bins_below <= 300
    assert slow_divergences(counts, levels)[bins_below] == min(slow_divergences(counts, levels).values())


def test_flat_and_degenerate_histograms():
    assert least_divergent(np.full(256, 10.0), 16) == 256  # what is left out always costs
    last = np.zeros(300)
    last[-1] = 7
    assert least_divergent(last, 16) == 300
    assert least_divergent(np.array([3.0, 1.0, 2.0]), 8) == 3  # fewer bins than levels
    gap = np.zeros(400)  # every threshold but the largest leaves the outlier in an empty bin
    gap[0], gap[-1] = 100, 1
    assert least_divergent(gap, 16) == 400


@pytest.mark.parametrize("levels", [4, 8, 16, 128])
def test_values_far_from_zero_are_not_clipped_to_the_least_of_them(levels):
    """Up to the first occupied bin, P and Q are both that bin: a divergence of nothing, and nothing inside."""
    values = 1 + np.random.default_rng(0).exponential(0.3, 5000)
    counts = np.histogram(values, 512, (0, values.max()))[0].astype(float)
    reach = least_divergent(counts, levels) * values.max() / 512
    assert np.mean(values > reach) < 0.1


def samples(values):
    values = torch.as_tensor(values)
    return InputSamples(values, values.min().item(), values.max().item())


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("bins", [300, 2048])
def test_scale_puts_the_threshold_on_the_last_code(bins, bits, signed):
    random = np.random.default_rng(bits)
    values = random.laplace(0, 0.8, (3000, 4)).astype(np.float32)
    values = values if signed else np.maximum(values, 0)
    magnitude = np.abs(values).ravel() if signed else values[values > 0]
    counts = np.histogram(magnitude, bins, (0, magnitude.max()))[0].astype(float)
    levels = 2 ** (bits - 1) if signed else 2**bits
    bins_below = least_divergent(counts, levels)
    grid = Grid(bits, signed)
    scale = TensorRT(bins=bins).calibrate_activations(samples(values), grid)
    assert scale.shape == () and scale.dtype == torch.float32
    assert scale.item() == pytest.approx((bins_below + 0.5) * magnitude.max() / bins / (levels - 1), rel=1e-6)
    if bins == 300:
        slow = slow_divergences(counts, levels)
        assert slow[bins_below] <= min(slow.values()) + 1e-12


def test_signs_do_not_matter_to_a_signed_range():
    values = torch.tensor(np.random.default_rng(0).laplace(0, 1, (2000, 3)))
    grid, method = Grid(6), TensorRT(bins=256)
    assert method.calibrate_activations(samples(values), grid) == method.calibrate_activations(samples(-values), grid)
    assert method.calibrate_activations(samples(values.abs()), grid) == method.calibrate_activations(
        samples(values), grid
    )


def test_zeros_do_not_matter_to_an_unsigned_range():
    values = torch.tensor(np.random.default_rng(0).exponential(1, (2000, 2)))
    padded = torch.cat([values, torch.zeros(9000, 2)])
    grid, method = Grid(4, signed=False), TensorRT(bins=256)
    assert method.calibrate_activations(samples(padded), grid) == method.calibrate_activations(samples(values), grid)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 8])
def test_dead_inputs_have_a_scale(bits, signed):
    dead = [torch.zeros(10, 3), torch.zeros(0, 3)] + ([] if signed else [-torch.ones(10, 3)])
    for values in dead:
        scale = TensorRT().calibrate_activations(InputSamples(values, 0, 0), Grid(bits, signed))
        assert scale.item() == 1


@pytest.mark.parametrize("bits", [4, 8])
def test_a_constant_input_is_reproduced(bits):
    values, grid = torch.full((50, 2), 3.0), Grid(bits, signed=False)
    scale = TensorRT().calibrate_activations(samples(values), grid)
    assert scale * grid.high == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_heavy_tails_are_clipped(bits):
    values = torch.tensor(np.random.default_rng(1).standard_t(2, (20_000, 1))).relu()
    grid = Grid(bits, signed=False)
    reach = TensorRT().calibrate_activations(samples(values), grid) * grid.high
    assert 3 < reach < 0.5 * values.max()
    tflite = named("tflite").calibrate_activations(samples(values), grid)
    assert tflite * grid.high == pytest.approx(values.max().item())


def test_weights_are_those_of_tflite():
    weight = torch.tensor(np.random.default_rng(2).standard_normal((2, 3, 20)))
    ours, theirs = (
        named(name).solve_weights(LayerStats.weight_space(weight), weight, 4) for name in ("tensorrt", "tflite")
    )
    assert torch.equal(ours.codes, theirs.codes) and torch.equal(ours.scale, theirs.scale) and ours.offset is None
