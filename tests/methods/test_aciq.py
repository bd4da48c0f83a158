"""ACIQ against published thresholds, numerical integration, sampling and a literal mid-point quantizer."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as distributions
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from bitsplit.errors import InputError
from bitsplit.grid import Grid
from bitsplit.methods import named
from bitsplit.methods.aciq import ACIQ, bias_corrected, clipping_scale, gauss_error, thresholds
from bitsplit.statistics.moments import LayerStats
from bitsplit.statistics.samples import InputSamples

# The constants in the authors' code, for 2 to 8 bits.
PUBLISHED = {
    "laplace": [2.83068299, 3.89722946, 5.02864014, 6.20476633, 7.41312622, 8.64561995, 9.89675982],
    "gauss": [1.71063519, 2.15159277, 2.55913646, 2.93620062, 3.28691474, 3.6151146, 3.92403714],
}


def laplace_error(alpha, bits):
    """As in the paper, in units of b²."""
    return 2 * math.exp(-alpha) + alpha**2 / (3 * 4.0**bits)


PRIORS = {"laplace": (laplace_error, distributions.laplace), "gauss": (gauss_error, distributions.norm)}
SPREAD = 0.37


def samples_of(prior, size, seed=0):
    """Values of spread SPREAD under the prior."""
    random = np.random.default_rng(seed)
    values = random.laplace(0, SPREAD, size) if prior == "laplace" else random.normal(0, SPREAD, size)
    return torch.tensor(values)


def integrated_error(alpha, bits, density):
    """Clipping error by quadrature, and the variance Δ²/12 of rounding to 2^bits cells over [-α, α]."""
    tail, _ = quad(lambda x: (x - alpha) ** 2 * density(x), alpha, np.inf, epsabs=1e-14, epsrel=1e-10)
    return 2 * tail + (2 * alpha / 2**bits) ** 2 / 12


def restored(codes):
    """The weights that Codes stand for, in double precision."""
    offset = 0 if codes.offset is None else codes.offset.double().unsqueeze(-1)
    return codes.codes.double() * codes.scale.double().unsqueeze(-1) + offset


def solved(weight, bits, **prior):
    return ACIQ(**prior).solve_weights(LayerStats.weight_space(weight), weight, bits)


# Thresholds


@pytest.mark.parametrize("prior", PRIORS)
def test_thresholds_are_the_published_ones(prior):
    np.testing.assert_allclose(thresholds(prior)[2:9], PUBLISHED[prior], atol=1e-4)


def test_laplace_threshold_is_lamberts():
    """W(3·4^M) is the solution of a·exp(a) = 3·4^M."""
    for bits, alpha in enumerate(thresholds("laplace").tolist()):
        assert alpha * np.exp(alpha) == pytest.approx(3 * 4**bits, rel=1e-12)


@pytest.mark.parametrize("bits", range(9))
@pytest.mark.parametrize("prior", PRIORS)
def test_threshold_minimises_the_integrated_error(prior, bits):
    error, distribution = PRIORS[prior]
    for alpha in (0.5, 1.7, 3.9, 7.0):
        assert error(alpha, bits) == pytest.approx(integrated_error(alpha, bits, distribution.pdf), rel=1e-7)
    best = minimize_scalar(
        lambda alpha: integrated_error(alpha, bits, distribution.pdf), bounds=(0.3, 15), method="bounded"
    )
    chosen = thresholds(prior)[bits].item()
    assert chosen == pytest.approx(best.x, rel=1e-3)
    assert integrated_error(chosen, bits, distribution.pdf) <= best.fun * (1 + 1e-7)


@pytest.mark.parametrize("bits", [3, 4, 5, 6])
@pytest.mark.parametrize("prior", PRIORS)
def test_errors_are_those_of_a_sampled_mid_point_quantizer(prior, bits):
    error, _ = PRIORS[prior]
    values = samples_of(prior, 2_000_000).numpy() / SPREAD
    for alpha in thresholds(prior)[bits].item() * np.array([0.7, 1.0, 1.3]):
        clipped, width = np.clip(values, -alpha, alpha), 2 * alpha / 2**bits
        inside = np.abs(values) < alpha
        middles = (np.floor((clipped + alpha) / width) + 0.5) * width - alpha
        quantized = np.where(inside, middles, clipped)  # the paper's model: rounding cells inside, the edge outside
        assert ((values - quantized) ** 2).mean() == pytest.approx(error(alpha, bits), rel=0.06)


# Scales


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("prior", PRIORS)
def test_scale_of_samples_of_the_prior(prior, bits):
    values = samples_of(prior, 300_000)
    signed, unsigned = Grid(bits), Grid(bits, signed=False)
    reach = clipping_scale(values, signed, prior).item() * (2 ** (bits - 1) - 1)
    assert reach == pytest.approx(min(SPREAD * PUBLISHED[prior][bits - 2], values.abs().max().item()), rel=0.01)
    half = clipping_scale(values.relu(), unsigned, prior).item() * (2**bits - 1)  # twice the range, one bit more
    threshold = thresholds(prior)[bits + 1].item() if bits == 8 else PUBLISHED[prior][bits - 1]
    assert half == pytest.approx(min(SPREAD * threshold, values.max().item()), rel=0.01)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("prior", PRIORS)
def test_scale_is_near_the_best_of_the_real_grid(prior, bits, signed):
    """The grid has a level at zero that the model has not, so the optimum is not the same, but near."""
    values, grid = samples_of(prior, 50_000), Grid(bits, signed)
    values = values if signed else values.relu()
    array = values.numpy()

    def error(scale):
        return ((array - np.clip(np.rint(array / scale), grid.low, grid.high) * scale) ** 2).mean()

    best = min(error(scale) for scale in np.linspace(0.1, 1, 91) * array.max() / grid.high)
    # At 8 bits single values of the sample lie beyond the threshold.
    assert error(clipping_scale(values, grid, prior).item()) < (1.3 if bits == 8 else 1.1) * best


@pytest.mark.parametrize("prior", PRIORS)
def test_nothing_is_clipped_beyond_the_largest_value(prior):
    values = torch.linspace(-1, 1, 101, dtype=torch.float64)
    assert clipping_scale(values, Grid(8), prior).item() == pytest.approx(1 / 127)
    assert clipping_scale(values, Grid(8, signed=False), prior).item() == pytest.approx(1 / 255)


@pytest.mark.parametrize("mean", [2, 5, 30])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_channels_far_from_zero_are_not_clipped_to_the_spread(bits, mean):
    values = samples_of("laplace", 20_000) + mean * SPREAD
    grid = Grid(bits)
    scales = [clipping_scale(values, grid, "laplace"), grid.scale_by_max(values)]
    errors = [((values - grid.quantize(values, scale) * scale) ** 2).mean().item() for scale in scales]
    assert errors[0] < max(1.05 * errors[1], scales[0].item() ** 2 / 4)
    assert scales[0] * grid.high == pytest.approx(
        min((mean + PUBLISHED["laplace"][bits - 2]) * SPREAD, values.abs().max().item()), rel=0.02
    )


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("prior", PRIORS)
def test_channels_are_scaled_one_by_one(prior, signed):
    rows = torch.stack([samples_of(prior, 500, seed) * 2.0**seed for seed in range(4)])
    grid = Grid(4, signed)
    scales = clipping_scale(rows, grid, prior)
    assert scales.tolist() == pytest.approx([clipping_scale(row, grid, prior).item() for row in rows], rel=1e-12)
    samples = InputSamples(rows.T, rows.min().item(), rows.max().item())
    assert torch.equal(ACIQ(input_prior=prior).calibrate_activations(samples, grid), scales)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("prior", PRIORS)
def test_channels_without_any_value_take_the_scale_of_all(prior, bits, signed):
    rows = torch.stack([samples_of(prior, 500, seed) for seed in range(3)])
    rows[1] = 0
    grid = Grid(bits, signed)
    scales = clipping_scale(rows, grid, prior)
    assert scales[1] == clipping_scale(rows.flatten(), grid, prior)
    assert scales[0] == clipping_scale(rows[0], grid, prior)
    assert clipping_scale(torch.zeros(3, 5), grid, prior).tolist() == [1, 1, 1]
    assert clipping_scale(torch.zeros(5), grid, prior).item() == 1
    if not signed:
        assert clipping_scale(-torch.ones(2, 5), grid, prior).tolist() == [1, 1]


# Weights


def assert_moments_restored(weight, codes):
    """Mean and norm about it, channel by channel; the norm only where codes vary."""
    weight, quantized = weight.double().numpy(), restored(codes).numpy()
    size = np.abs(weight).max(axis=-1) + 1e-300
    assert np.isfinite(quantized).all()
    assert (np.abs(quantized.mean(axis=-1) - weight.mean(axis=-1)) <= 1e-5 * size).all()
    norm, expected = quantized.std(axis=-1), weight.std(axis=-1)
    varies = (codes.codes != codes.codes[..., :1]).any(dim=-1).numpy()
    assert (np.abs(norm - expected)[varies] <= 1e-5 * size[varies]).all()
    assert (norm[~varies] <= 1e-5 * size[~varies]).all()


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 30)),
    bits=st.integers(2, 8),
    prior=st.sampled_from(list(PRIORS)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    exponent=st.integers(-20, 20),
    shift=st.sampled_from([0.0, 0.3, -20.0]),
    special=st.sampled_from(["zero", "constant", "one value", None]),
    seed=st.integers(0, 10**6),
)
def test_mean_and_norm_of_every_channel_are_restored(shape, bits, prior, dtype, exponent, shift, special, seed):
    random = np.random.default_rng(seed)
    weight = (random.standard_t(3, shape) + shift) * 10.0 ** (exponent / 4)
    if special == "one value":
        weight[0, 0, 1:] = 0
    elif special:
        weight[0, 0] = 0 if special == "zero" else 0.1
    weight = torch.tensor(weight, dtype=dtype)
    codes = solved(weight, bits, weight_prior=prior)
    assert codes.codes.dtype == torch.int8 and codes.codes.abs().max() <= 2 ** (bits - 1) - 1
    assert codes.codes.shape == shape and codes.scale.shape == codes.offset.shape == shape[:2]
    assert codes.scale.dtype == dtype and codes.scale.isfinite().all() and codes.offset.isfinite().all()
    assert_moments_restored(weight, codes)
    if special == "zero":
        assert not codes.codes[0, 0].any() and codes.offset[0, 0] == 0


@settings(deadline=None, max_examples=60, derandomize=True)
@given(bits=st.integers(2, 8), seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_bias_correction_of_any_codes(bits, seed, scale):
    random = np.random.default_rng(seed)
    weight = torch.tensor(random.standard_normal((2, 3, 7)))
    high = 2 ** (bits - 1) - 1
    codes = torch.tensor(random.integers(-high, high + 1, weight.shape)).double()
    codes[1, 2] = high
    assert_moments_restored(weight, bias_corrected(weight, codes, torch.full((2, 3), scale, dtype=torch.float64)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 1e-20, 1e20])
def test_constant_channels_are_reproduced(constant, dtype):
    weight = torch.full((1, 2, 10), constant, dtype=dtype)
    codes = solved(weight, 4)
    assert codes.scale.isfinite().all() and codes.offset.isfinite().all()
    np.testing.assert_allclose(restored(codes), weight.double(), rtol=1e-5)


@pytest.mark.parametrize("bits, ceiling", [(2, 0.4), (3, 0.6), (4, 0.85)])
@pytest.mark.parametrize("seed", range(3))
def test_error_of_gaussian_weights_is_below_that_of_the_maximum(bits, ceiling, seed):
    weight = torch.tensor(np.random.default_rng(seed).normal(0.1, 1, (1, 8, 576)))
    errors = [
        ((restored(named(name).solve_weights(None, weight, bits)) - weight) ** 2).sum() for name in ("aciq", "tflite")
    ]
    assert errors[0] < ceiling * errors[1]


def test_weights_far_from_zero_are_quantized_about_their_mean():
    """Depthwise kernels are often nearly flat: the threshold is a distance from the mean."""
    weight = torch.tensor(np.random.default_rng(4).normal(0, 0.02, (6, 1, 25)))
    about_zero, flat = (((restored(solved(w, 4)) - w) ** 2).sum().item() for w in (weight, weight + 0.11))
    assert flat == pytest.approx(about_zero, rel=1e-6)


@pytest.mark.parametrize("prior", [{"weight_prior": "uniform"}, {"input_prior": ""}, {"input_prior": None}])
def test_priors_there_are_not(prior):
    with pytest.raises(InputError, match=next(iter(prior))):
        ACIQ(**prior)
