"""Bit-split-per-channel: every channel as if it were alone, and the weights of bit-split."""

import dataclasses

import numpy as np
import pytest
import torch
from small_networks import BATCHES, NO_NORM, Residual, known_of, lively, quantized_layers

import bitsplit
from bitsplit import ptq
from bitsplit.grid import Grid
from bitsplit.methods import named
from bitsplit.settings import Bits, Calibration
from bitsplit.statistics.samples import InputSamples

METHOD, PER_LAYER = named("bitsplit_per_channel"), named("bitsplit")


def samples(signed, decades=1.0, seed=0, dtype=torch.float32):
    """(500, 6) values whose channels' ranges differ by up to 10^(2·decades)."""
    random = np.random.default_rng(seed)
    values = random.laplace(0, 1, (500, 6)) * 10.0 ** random.uniform(-decades, decades, 6)
    values = torch.tensor(values if signed else np.maximum(values, 0), dtype=dtype)
    return InputSamples(values, values.min().item(), values.max().item())


def squared_errors(values, grid, scale):
    """By channel, in numpy."""
    values, scale = values.double().numpy(), np.asarray(scale, dtype=float)
    codes = np.clip(np.rint(values / scale), grid.low, grid.high)
    return ((values - codes * scale) ** 2).sum(axis=0)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_each_channel_has_the_scale_it_has_alone(bits, signed):
    grid, seen = Grid(bits, signed), samples(signed, dtype=torch.float64)
    scales = METHOD.calibrate_activations(seen, grid)
    assert scales.shape == (6,)
    for channel, scale in zip(seen.values.T, scales, strict=True):
        positive = channel if signed else channel[channel > 0]  # as per layer: only positive values count
        # Alone it stops as soon as it repeats; beside others it may go on in the last digits.
        assert scale.item() == pytest.approx(grid.scale_by_alternation(positive).item(), rel=1e-9)
        alone = InputSamples(channel.unsqueeze(1), channel.min().item(), channel.max().item())
        assert scale.item() == pytest.approx(PER_LAYER.calibrate_activations(alone, grid).item(), rel=1e-9)


@pytest.mark.parametrize("signed", [True, False])
def test_channels_without_a_value_take_the_layers(signed):
    seen, grid = samples(signed), Grid(4, signed)
    seen.values[:, [1, 4]] = 0
    if not signed:
        seen.values[:, 4] = -1.0  # nothing that the grid could hold
    scales = METHOD.calibrate_activations(seen, grid)
    layer = PER_LAYER.calibrate_activations(seen, grid)
    assert scales[1] == scales[4] == layer
    assert not (scales[[0, 2, 3, 5]] == layer).any()
    dead = InputSamples(torch.zeros(10, 3), 0, 0)
    assert METHOD.calibrate_activations(dead, grid).tolist() == [1, 1, 1]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("seed", range(4))
def test_error_is_below_that_of_one_scale_for_the_layer(seed, bits, signed):
    seen, grid = samples(signed, seed=seed), Grid(bits, signed)
    each, layer = (
        squared_errors(seen.values, grid, method.calibrate_activations(seen, grid)) for method in (METHOD, PER_LAYER)
    )
    assert each.sum() < layer.sum()
    assert (each <= layer * 1.1).all()  # an alternation ends in a local optimum, a little above at worst


def test_a_network_has_bitsplits_weights_and_a_scale_a_channel():
    network, settings = lively(Residual()), dataclasses.replace(NO_NORM, bits=Bits(4, 4))
    known = ptq.Known(statistics=known_of(network, METHOD, settings).statistics)
    ours, theirs = (
        bitsplit.quantize(network, BATCHES, method=method, settings=settings, known=known)
        for method in (METHOD, PER_LAYER)
    )
    layers = quantized_layers(theirs)
    for name, layer in quantized_layers(ours).items():
        assert torch.equal(layer.codes, layers[name].codes) and torch.equal(layer.scale, layers[name].scale)
        assert layer.offset is None
        if name == "stem":
            continue
        shape = (8 * 4 * 6,) if name == "head" else (layer.in_channels, 1, 1)
        assert layer.input_quantizer.scale.shape == shape and layers[name].input_quantizer.scale.shape == ()
        assert len(layer.input_quantizer.scale.unique()) > 1
    errors = [q.report["input_error"].astype(float) for q in (ours, theirs)]
    assert (errors[0] <= errors[1]).all() and errors[0].sum() < 0.9 * errors[1].sum()


@pytest.mark.parametrize("asked", [20, 700])
def test_as_many_values_of_each_channel_as_asked_for(asked):
    counts = []

    class Counting(type(METHOD)):
        def calibrate_activations(self, samples, grid):
            counts.append(len(samples.values))
            return super().calibrate_activations(samples, grid)

    settings = dataclasses.replace(NO_NORM, calibration=Calibration(patches=800, samples=10), bits=Bits(4, 4))
    bitsplit.quantize(lively(Residual()), BATCHES, method=Counting(channel_samples=asked), settings=settings)
    images = sum(map(len, BATCHES))  # the classifier reads one value of each channel in an image
    assert min(asked, images) - len(BATCHES) < min(counts) <= max(asked, images)
    assert asked <= max(counts) < 2 * asked + len(BATCHES) * 2


def test_a_larger_sample_clips_less_of_what_it_has_not_seen():
    random = np.random.default_rng(0)
    values = torch.tensor(random.laplace(0, 1, (100_000, 4)), dtype=torch.float32)
    grid, errors = Grid(8), []
    for count in (1000, 10_000):
        seen = InputSamples(values[:count], values.min().item(), values.max().item())
        errors.append(squared_errors(values, grid, METHOD.calibrate_activations(seen, grid)).sum())
    assert errors[1] < 0.7 * errors[0]
