"""The grid and its two scales, against plain Python rounding and scipy's scalar minimiser."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from bitsplit.grid import Grid

GRIDS = [Grid(bits, signed) for bits in range(2, 9) for signed in (True, False)]
rows = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=12)


def nearest_codes(values, scale, low, high):
    """Codes by Python's round, which is half to even."""
    return [min(max(round(value / scale), low), high) for value in values]


def squared_error(values, scale, grid):
    codes = np.clip(np.rint(values / scale), grid.low, grid.high)
    return float(((values - scale * codes) ** 2).sum())


def random_row(seed, size, signed):
    values = np.random.default_rng(seed).standard_normal(size)
    return values if signed else np.maximum(values, 0)


@pytest.mark.parametrize(
    "bits, signed, low, high",
    [(2, True, -1, 1), (3, True, -3, 3), (4, True, -7, 7), (5, True, -15, 15), (8, True, -127, 127)]
    + [(2, False, 0, 3), (3, False, 0, 7), (4, False, 0, 15), (8, False, 0, 255)],
)
def test_range(bits, signed, low, high):
    grid = Grid(bits, signed)
    assert (grid.low, grid.high) == (low, high)
    far = torch.tensor([-1e9, 1e9])
    assert grid.quantize(far, torch.tensor(1.0)).tolist() == [low, high]


def test_signed_is_the_default():
    assert Grid(4) == Grid(4, signed=True)


def test_rounds_half_to_even():
    values = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 4.5])
    assert Grid(4).quantize(values, torch.tensor(1.0)).tolist() == [-2, -2, 0, 0, 2, 2, 4, 4]
    assert Grid(3).quantize(values * 0.25, torch.tensor(0.25)).tolist() == [-2, -2, 0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_quantize_agrees_with_python_rounding(grid):
    eighths = np.arange(-40, 41) / 8  # holds every tie of the scale 1/4
    values = torch.tensor(eighths, dtype=torch.float64)
    before = values.clone()
    codes = grid.quantize(values, torch.tensor(0.25, dtype=torch.float64))
    assert codes.tolist() == nearest_codes(eighths, 0.25, grid.low, grid.high)
    assert codes.dtype == values.dtype
    assert torch.equal(values, before)


def test_quantize_broadcasts_one_scale_a_row():
    values = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    codes = Grid(4).quantize(values, torch.tensor([[1.0], [10.0]]))
    assert codes.tolist() == [[1, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_scale_by_max_puts_the_largest_value_on_the_last_code(grid):
    values = torch.tensor([[0.5, -4.0, 2.0], [1.0, 0.25, 3.0]], dtype=torch.float64)
    largest = [4.0, 3.0] if grid.signed else [2.0, 3.0]
    scale = grid.scale_by_max(values)
    assert scale.tolist() == [value / grid.high for value in largest]
    codes = grid.quantize(values, scale.unsqueeze(-1))
    assert codes.abs().amax(dim=-1).tolist() == [grid.high, grid.high]


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
def test_scales_drop_the_last_dimension(shape):
    values = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    assert Grid(4).scale_by_max(values).shape == shape[:-1]
    assert Grid(4).scale_by_alternation(values).shape == shape[:-1]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_to_scale_gives_one(grid, dtype):
    nothing = [torch.zeros(3, 5, dtype=dtype), torch.empty(3, 0, dtype=dtype)]
    if not grid.signed:
        nothing.append(-torch.ones(3, 5, dtype=dtype))
    for values in nothing:
        assert grid.scale_by_max(values).tolist() == [1.0] * 3
        assert grid.scale_by_alternation(values).tolist() == [1.0] * 3
        assert grid.scale_by_alternation(values[0]).item() == 1.0
        assert not grid.quantize(values, grid.scale_by_alternation(values).unsqueeze(-1)).any()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("constant", [1e-30, 0.3, 7.0, 1e15])
def test_constants_are_reproduced(grid, constant):
    values = torch.full((2, 9), constant, dtype=torch.float64)
    for scale in (grid.scale_by_max(values), grid.scale_by_alternation(values)):
        restored = grid.quantize(values, scale.unsqueeze(-1)) * scale.unsqueeze(-1)
        np.testing.assert_allclose(restored, values, rtol=1e-12)


def test_zero_row_beside_others_changes_nothing():
    values = torch.tensor(random_row(0, 20, True)).expand(2, -1).clone()
    values[0] = 0
    scale = Grid(3).scale_by_alternation(values)
    assert scale[0] == 1
    assert scale[1] == Grid(3).scale_by_alternation(values[1])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rows_that_end_after_different_steps_are_as_alone(bits):
    """Up to the last digits, in which a cycle goes on while other rows still move."""
    generator = torch.Generator().manual_seed(bits)
    values = torch.randn(300, 200, generator=generator, dtype=torch.float64).pow(3)
    values[::7] = torch.randint(-9, 10, (43, 200), generator=generator).double()
    scale = Grid(bits).scale_by_alternation(values)
    torch.testing.assert_close(
        scale, torch.stack([Grid(bits).scale_by_alternation(row) for row in values]), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("seed", range(3))
def test_alternation_is_a_local_optimum(bits, signed, seed):
    grid, values = Grid(bits, signed), random_row(seed, 15, signed)
    scale = grid.scale_by_alternation(torch.tensor(values)).item()
    codes = np.array(nearest_codes(values, scale, grid.low, grid.high))
    assert scale == pytest.approx(values @ codes / (codes @ codes), rel=1e-12)
    ratio = np.abs(values / scale)
    to_next_code = np.abs(np.abs(ratio - np.floor(ratio)) - 0.5).min() / (ratio.max() + 1)
    reach = min(1e-2, 0.5 * to_next_code) * scale  # no code changes within it: a parabola
    near = minimize_scalar(
        lambda candidate: squared_error(values, candidate, grid),
        bounds=(scale - reach, scale + reach),
        method="bounded",
        options={"xatol": reach * 1e-6},
    )
    assert squared_error(values, scale, grid) <= near.fun * (1 + 1e-12)
    assert near.x == pytest.approx(scale, abs=1e-2 * reach + 1e-7 * scale)


@pytest.mark.parametrize("bits, ceiling", [(2, 0.70), (3, 0.85)])
def test_alternation_gains_over_the_maximum(bits, ceiling):
    grid, values = Grid(bits), random_row(5, 2000, True)
    fitted = squared_error(values, grid.scale_by_alternation(torch.tensor(values)).item(), grid)
    assert fitted < ceiling * squared_error(values, grid.scale_by_max(torch.tensor(values)).item(), grid)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(values=rows, bits=st.integers(2, 8), signed=st.booleans())
def test_alternation_never_loses_to_the_maximum_and_is_a_fixed_point(values, bits, signed):
    grid, values = Grid(bits, signed), np.array(values)
    by_max = grid.scale_by_max(torch.tensor(values)).item()
    scale = grid.scale_by_alternation(torch.tensor(values)).item()
    assert math.isfinite(scale) and scale > 0
    energy = float((values**2).sum())
    assert squared_error(values, scale, grid) <= squared_error(values, by_max, grid) + 1e-12 * energy
    codes = np.array(nearest_codes(values, scale, grid.low, grid.high))
    if codes.any():
        assert scale == pytest.approx(values @ codes / (codes @ codes), rel=1e-9)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(values=rows, bits=st.integers(2, 8), exponent=st.integers(-20, 20))
def test_scales_are_homogeneous(values, bits, exponent):
    values, grid = torch.tensor(values, dtype=torch.float64), Grid(bits)
    if not values.any():
        return
    for scale_of in (grid.scale_by_max, grid.scale_by_alternation):
        assert scale_of(values * 2.0**exponent) == scale_of(values) * 2.0**exponent
        assert scale_of(-values) == scale_of(values)


# Bits by channel


def test_range_of_every_channel():
    bits = torch.arange(9.0)
    signed, unsigned = Grid(bits), Grid(bits, signed=False)
    assert signed.high.tolist() == [0, 0, 1, 3, 7, 15, 31, 63, 127]
    assert signed.low.tolist() == [-high for high in signed.high.tolist()]
    assert unsigned.high.tolist() == [0, 1, 3, 7, 15, 31, 63, 127, 255]
    assert unsigned.low.tolist() == [0] * 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("signed", [True, False])
def test_each_channel_is_quantized_on_its_grid(signed, dtype):
    bits = torch.tensor([0, 1, 2, 3, 5, 8], dtype=dtype)
    values = torch.tensor(np.random.default_rng(3).standard_normal((6, 50)) * 1000, dtype=dtype)
    scale = torch.linspace(0.1, 2, 6, dtype=dtype)
    codes = Grid(bits, signed).reshaped(6, 1).quantize(values, scale.unsqueeze(-1))
    assert codes.dtype == dtype
    for row, channel, step, channel_bits in zip(codes, values, scale, bits.int().tolist(), strict=True):
        high = 2 ** max(channel_bits - 1, 0) - 1 if signed else 2**channel_bits - 1
        assert row.tolist() == np.clip(np.rint((channel / step).numpy()), -high if signed else 0, high).tolist()
        assert row.abs().max() == high
    across = Grid(bits, signed).quantize(values.T, scale)
    assert torch.equal(across.T, codes)


def test_magnitude_is_the_reach_into_the_grid():
    values = torch.tensor([-2.0, -0.5, 0.0, 3.0])
    assert Grid(4).magnitude(values).tolist() == [2, 0.5, 0, 3]
    assert Grid(4, signed=False).magnitude(values).tolist() == [0, 0, 0, 3]


def test_one_bit_width_needs_no_shape():
    assert Grid(4, signed=False).reshaped(3, 1) == Grid(4, signed=False)
    assert Grid(torch.tensor([2.0, 3.0]), signed=False).reshaped(2, 1, 1).bits.shape == (2, 1, 1)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(2, 8), st.data())
def test_a_zero_point_moves_the_codes_and_keeps_zero(bits, data):
    zero = data.draw(st.integers(1, 2**bits - 2))
    grid = Grid(bits, signed=False, zero=zero)
    assert (grid.low, grid.high) == (-zero, 2**bits - 1 - zero)
    values = torch.randn(500, generator=torch.Generator().manual_seed(zero)).double()
    assert grid.quantize(torch.zeros(3), torch.tensor(0.3)).abs().max() == 0
    largest = grid.scale_by_max(values)
    codes = grid.quantize(values, largest)
    assert torch.equal(codes, (values / largest).round())  # nothing is clipped, and an end is reached
    assert codes.min() == grid.low or codes.max() == grid.high

    def error(scale):
        return (grid.quantize(values, scale) * scale - values).square().sum()

    found = grid.scale_by_alternation(values)
    assert error(found) <= error(largest)
    codes = grid.quantize(values, found)
    assert found.item() == pytest.approx(((values * codes).sum() / codes.square().sum()).item(), rel=1e-9)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(values=rows, bits=st.integers(2, 8))
def test_a_mid_rise_grid_has_every_value_of_its_bits_but_zero(values, bits):
    grid, values = Grid(bits, midrise=True), torch.tensor(values, dtype=torch.float64)
    codes = grid.quantize(torch.linspace(-(2**bits), 2**bits, 2 ** (bits + 3)), torch.tensor(1.0))
    assert codes.unique().tolist() == [code - 2 ** (bits - 1) + 0.5 for code in range(2**bits)]

    def error(scale):
        offsets = grid.quantize(values, scale) - values / scale
        assert (offsets.abs() <= 0.5 + 1e-6).logical_or(values.abs() > grid.high * scale).all()
        return (offsets * scale).square().sum()

    largest, found = grid.scale_by_max(values), grid.scale_by_alternation(values)
    assert error(found) <= error(largest) + 1e-12 * values.square().sum()
    codes = grid.quantize(values, found)
    if values.any():
        assert found.item() == pytest.approx(((values * codes).sum() / codes.square().sum()).item(), rel=1e-9)


@pytest.mark.parametrize(("bits", "loss"), [(2, 0.1188), (3, 0.03744), (4, 0.01154)])
def test_a_mid_rise_grid_loses_of_normal_weights_what_the_best_uniform_quantizer_does(bits, loss):
    """Max, "Quantizing for minimum distortion" (1960), table II."""
    grid, values = Grid(bits, midrise=True), torch.randn(10**6, generator=torch.Generator().manual_seed(bits)).double()
    scale = grid.scale_by_alternation(values)
    assert (grid.quantize(values, scale) * scale - values).square().mean().item() == pytest.approx(loss, rel=0.01)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("seed", range(6))
def test_with_a_zero_point_the_scale_is_nearly_the_best_of_all(bits, seed):
    """Against a search over 400 scales, on values that reach further on one side, with a few far from the others."""
    random = np.random.default_rng(seed)
    values = np.where(random.random(3000) < 0.5, -1.0, 1.0 + 5 * random.random()) * random.exponential(size=3000)
    values[:3] *= 5
    zero = int(random.integers(1, 2 ** (bits - 1)))
    grid = Grid(bits, signed=False, zero=zero)
    reached = squared_error(values, grid.scale_by_alternation(torch.tensor(values)).item(), grid)
    scales = np.geomspace(0.05, 1, 400) * grid.scale_by_max(torch.tensor(values)).item()
    assert reached <= 1.05 * min(squared_error(values, scale, grid) for scale in scales)
