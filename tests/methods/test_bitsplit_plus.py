"""The grids of what bit-split-plus reads: which zero point, for one scale and for a scale by channel."""

import math

import pytest
import torch

from bitsplit.grid import Grid
from bitsplit.methods.bitsplit_plus import BitSplitPlus
from bitsplit.statistics.samples import InputSamples

WEIGHT = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(1))


def sampled(values):
    return InputSamples(values, values.min().item(), values.max().item())


def error(grid, values, scale):
    return (grid.quantize(values, scale) * scale - values).square().sum().item()


def one_scale(grid, values):
    return grid.scale_by_alternation(values.flatten())


def after_silu(shape):
    return torch.nn.functional.silu(torch.randn(shape, generator=torch.Generator().manual_seed(0)))


def test_inputs_of_both_signs_get_the_zero_point_of_least_error():
    values, plain = after_silu((400, 8)), Grid(4)
    grid = BitSplitPlus().input_grid(sampled(values), 4, signed=True)
    assert grid.zero > 0
    assert error(grid, values, one_scale(grid, values)) < 0.5 * error(plain, values, one_scale(plain, values))
    assert BitSplitPlus(symmetric_inputs=True).input_grid(sampled(values), 4, signed=True) == plain
    assert BitSplitPlus().input_grid(sampled(values), 4, signed=False) == Grid(4, signed=False)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("first", [1.0, -1.0])
def test_every_channel_has_a_say_in_the_zero_point(first, bits):
    """The first channel has one sign, all others the other one, and there are so many values that few are tried."""
    values = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0)).abs() * -first
    values[:, 0] *= -0.1
    grid = BitSplitPlus().input_grid(sampled(values), bits, signed=True)
    best = min(
        error(other, values, one_scale(other, values))
        for other in [Grid(bits, False, zero) for zero in (1, 2**bits - 2)]
    )
    assert error(grid, values, one_scale(grid, values)) < 1.1 * best
    folded, scale = BitSplitPlus().folded_input(sampled(values), bits, True, [(WEIGHT, 4)])
    assert scale.shape == (16,) and error(folded, values, scale) < 1.1 * best


def test_a_zero_point_for_scales_by_channel_is_chosen_under_them():
    """Behind SiLU all channels reach down to −0.28, so that those of a short reach upwards need a high zero point."""
    values = after_silu((10_000, 16)) * torch.tensor([1.0] + [0.2] * 15)
    samples = sampled(values)
    grid, _ = BitSplitPlus().folded_input(samples, 4, True, [(WEIGHT, 4)])
    own = BitSplitPlus().calibrate_activations(samples, grid)
    errors = [
        error(other, values, BitSplitPlus().calibrate_activations(samples, other))
        for other in [Grid(4), *(Grid(4, False, zero) for zero in range(1, 15))]
    ]
    assert error(grid, values, own) < 1.05 * min(errors)


def test_scales_by_channel_go_as_far_as_the_weights_of_all_readers_bear():
    generator = torch.Generator().manual_seed(0)
    values, weight = (torch.rand(4_000, 16, generator=generator).square(), torch.randn(1, 8, 16, generator=generator))

    def spread(reach: float, *bits: int) -> float:
        """The greatest over the least scale of inputs whose channels reach from 1 to `reach`, before such weights."""
        samples = sampled(values * torch.logspace(0, math.log10(reach), 16))
        _, scale = BitSplitPlus().folded_input(samples, 4, False, [(weight, count) for count in bits])
        return (scale.max() / scale.min()).item()

    assert spread(1, 8) < 1.2
    assert 9 < spread(10, 8) < 11
    assert 3 < spread(10, 4) < 9
    assert spread(10, 8, 2) == spread(10, 2, 8) < 3


@pytest.mark.parametrize("count", [64, 500])
def test_scales_of_few_values_clip_no_others(count):
    """The largest values of a channel are not in a small sample, and its own scale would clip them."""
    values = torch.randn(count, 64, generator=torch.Generator().manual_seed(0)).abs().pow(3)
    others = torch.randn(50_000, 64, generator=torch.Generator().manual_seed(1)).abs().pow(3)
    weight = torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(2))
    method, samples = BitSplitPlus(), sampled(values)
    grid, scale = method.folded_input(samples, 8, False, [(weight, 8)])
    own = method.calibrate_activations(samples, grid)
    assert error(grid, others, scale) < 0.7 * error(grid, others, own)


@pytest.mark.parametrize("signed", [True, False])
def test_a_single_value_of_each_channel_is_enough(signed):
    values = torch.tensor([[1.0, 2.0, -0.5 if signed else 0.5]])
    grid, scale = BitSplitPlus().folded_input(sampled(values), 8, signed, [(WEIGHT[..., :3], 8)])
    assert error(grid, values, scale) < 1e-3
