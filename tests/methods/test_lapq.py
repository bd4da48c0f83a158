"""LAPQ: Lp scales against a search on the raw samples, the parabola, and the joint search on losses known by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from bitsplit.grid import Grid
from bitsplit.methods.base import RefinableInput, RefinableWeight
from bitsplit.methods.lapq import EXPONENTS, LAPQ, best_exponent, lp_scale
from bitsplit.statistics.moments import LayerStats
from bitsplit.statistics.samples import InputSamples

# Lp scales


def values_of(kind, signed, seed=0, size=4000):
    random = np.random.default_rng(seed)
    values = {
        "gauss": lambda: random.standard_normal(size),
        "laplace": lambda: random.laplace(0, 0.3, size),
        "uniform": lambda: random.uniform(-2, 2, size),
        "heavy": lambda: random.standard_t(4, size) * 5,
    }[kind]()
    return values if signed else np.maximum(values, 0)


def lp_error(values, grid, scale, p):
    """The exact mean over the raw samples."""
    codes = np.clip(np.rint(values / scale), grid.low, grid.high)
    return (np.abs(values - codes * scale) ** p).mean()


@pytest.mark.parametrize("p", [2.0, 3.0, 4.0])
@pytest.mark.parametrize("bits, signed", [(2, True), (3, True), (4, True), (3, False), (4, False), (8, False)])
@pytest.mark.parametrize("kind", ["gauss", "laplace", "uniform", "heavy"])
def test_lp_scale_minimises_the_error_of_the_raw_samples(kind, bits, signed, p):
    values, grid = values_of(kind, signed), Grid(bits, signed)
    candidates = np.linspace(0.05, 1.05, 101) * np.abs(values).max() / grid.high
    errors = [lp_error(values, grid, scale, p) for scale in candidates]
    best = int(np.argmin(errors))
    fine = minimize_scalar(
        lambda scale: lp_error(values, grid, scale, p),
        bounds=(candidates[max(best - 1, 0)], candidates[min(best + 1, 100)]),
        method="bounded",
    )
    chosen = lp_scale(torch.tensor(values), grid, p)
    assert chosen.shape == () and chosen.dtype == torch.float64
    # The histogram moves every value by half a bin at most: up to a 32nd of a step at 8 bits, far less below.
    assert lp_error(values, grid, chosen.item(), p) <= min(fine.fun, errors[best]) * (1.1 if bits == 8 else 1.01)


@pytest.mark.parametrize("signed", [True, False])
def test_larger_powers_clip_less(signed):
    values = torch.tensor(values_of("laplace", signed))
    scales = [lp_scale(values, Grid(3, signed), p).item() for p in EXPONENTS]
    assert scales == sorted(scales) and scales[-1] > 1.2 * scales[0]
    assert scales[-1] * Grid(3, signed).high <= values.abs().max()


@pytest.mark.parametrize("signed", [True, False])
def test_lp_scale_follows_its_values(signed):
    values, grid = torch.tensor(values_of("gauss", signed)).reshape(4, 10, 100), Grid(4, signed)
    scale = lp_scale(values, grid, 2.5)
    assert lp_scale(values * 64, grid, 2.5).item() == pytest.approx(64 * scale.item(), rel=1e-3)
    assert lp_scale(values.flatten().flip(0), grid, 2.5) == scale
    if signed:
        assert lp_scale(-values, grid, 2.5) == scale
    else:
        assert lp_scale(values - 10 * (values == 0), grid, 2.5) == scale  # what lies below the grid is left alone


@pytest.mark.parametrize("signed", [True, False])
def test_nothing_to_scale_gives_one(signed):
    for values in (torch.zeros(7), torch.zeros(0), torch.zeros(2, 3, dtype=torch.float64)):
        assert lp_scale(values, Grid(4, signed), 3).item() == 1
    if not signed:
        assert lp_scale(-torch.ones(5), Grid(4, signed), 3).item() == 1


def test_weights_are_rounded_at_one_scale_with_bias_correction():
    weight = torch.tensor(np.random.default_rng(0).standard_normal((2, 3, 50)) * np.array([0.3, 1, 2])[:, None] + 0.1)
    codes = LAPQ().solve_weights(LayerStats.weight_space(weight), weight, 4)
    scale = lp_scale(weight, Grid(4), 2).item()
    assert codes.codes.tolist() == np.clip(np.rint(weight.numpy() / scale), -7, 7).tolist()
    restored = (codes.codes * codes.scale.unsqueeze(-1) + codes.offset.unsqueeze(-1)).numpy()
    np.testing.assert_allclose(restored.mean(axis=-1), weight.numpy().mean(axis=-1), atol=1e-12)
    np.testing.assert_allclose(restored.std(axis=-1), weight.numpy().std(axis=-1), rtol=1e-10)


# The parabola


@pytest.mark.parametrize("vertex", [2.0, 2.13, 3.0, 3.77, 4.0])
@pytest.mark.parametrize("curvature", [1e-3, 1.0, 50.0])
def test_vertex_of_a_parabola(vertex, curvature):
    vertex += {2.0: 1e-6, 4.0: -1e-6}.get(vertex, 0)  # just inside
    losses = [curvature * (p - vertex) ** 2 + 0.7 for p in EXPONENTS]
    assert best_exponent(EXPONENTS, losses) == pytest.approx(vertex, abs=1e-6)


@pytest.mark.parametrize(
    "loss, expected",
    [
        (lambda p: (p - 1) ** 2, 2.0),  # the vertex lies before the range
        (lambda p: (p - 7) ** 2, 4.0),  # or behind it
        (lambda p: -((p - 2.8) ** 2), 4.0),  # a maximum is no minimum
        (lambda p: -((p - 3.4) ** 2), 2.0),
        (lambda p: 3 * p, 2.0),
        (lambda p: -3 * p, 4.0),
        (lambda p: {3.0: -1.0}.get(p, 2.0 if p in (2.5, 3.5) else 0.0), 3.0),  # no parabola: the least of them
    ],
)
def test_fallbacks_of_the_parabola(loss, expected):
    assert best_exponent(EXPONENTS, [loss(p) for p in EXPONENTS]) == expected


def test_equal_losses_give_an_exponent_of_the_range():
    assert 2 <= best_exponent(EXPONENTS, [0.25] * 5) <= 4


# The joint search


class Toy:
    """Tensors whose scales a loss can see: inputs through the scale they are given, weights through their codes."""

    def __init__(self, inputs, weights=0, seed=0):
        random = np.random.default_rng(seed)
        self.scales, self.codes = [None] * inputs, [None] * weights
        self.samples = [torch.tensor(random.laplace(0, 1 + k, (800, 2))) for k in range(inputs)]
        self.originals = [torch.tensor(random.standard_normal((1, 3, 60)) * (1 + k)) for k in range(weights)]
        self.inputs = [
            RefinableInput(InputSamples(values, -1, 1), Grid(4), lambda scale, k=k: self.scales.__setitem__(k, scale))
            for k, values in enumerate(self.samples)
        ]
        self.weights = [
            RefinableWeight(weight, 3, lambda codes, k=k: self.codes.__setitem__(k, codes))
            for k, weight in enumerate(self.originals)
        ]
        self.seen = []

    def refine(self, loss, evaluations, images=5):
        """Refines under loss(self); checks that the loss is asked for on the right images."""

        def counted(asked):
            assert asked == images
            self.seen.append(float(loss(self)))
            return self.seen[-1]

        LAPQ(images=images, evaluations=evaluations).refine(self.weights, self.inputs, counted)
        return float(loss(self))

    @property
    def log_scales(self):
        return np.log2([scale.item() for scale in self.scales])


def starts(toy):
    """The scales of least Lp error for every p, by input."""
    return np.array([[lp_scale(values, Grid(4), p).item() for p in EXPONENTS] for values in toy.samples])


@pytest.mark.parametrize("offset", [0.15, -0.3, 0.5])
def test_search_reaches_the_minimum_of_a_separable_loss(offset):
    toy = Toy(inputs=4)
    targets = np.log2(starts(toy)[:, 0]) + offset * np.array([1, -1, 0.5, 0])
    final = toy.refine(lambda toy: ((toy.log_scales - targets) ** 2).sum(), evaluations=400)
    np.testing.assert_allclose(toy.log_scales, targets, atol=0.07)  # 5%: a line search ends early
    assert final == min(toy.seen) < 0.01 < 0.05 < min(toy.seen[:6])


def quantized_error(weight, scale, target):
    """‖Ŵ − target‖² for a weight rounded at `scale` whose channels keep their mean and norm, in numpy."""
    codes = np.clip(np.rint(weight / scale), -3, 3) * scale
    centred = codes - codes.mean(axis=-1, keepdims=True)
    mean = weight.mean(axis=-1, keepdims=True)
    restored = centred * np.linalg.norm(weight - mean, axis=-1, keepdims=True)
    restored = restored / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-9) + mean
    return ((restored - target) ** 2).sum()


def test_search_moves_the_scales_of_weights_too():
    toy = Toy(inputs=1, weights=2)
    targets = [weight.numpy() * 0.8 for weight in toy.originals]

    def loss(toy):
        restored = [(c.codes * c.scale.unsqueeze(-1) + c.offset.unsqueeze(-1)).numpy() for c in toy.codes]
        return sum(((r - w) ** 2).sum() for r, w in zip(restored, targets, strict=True)) + toy.log_scales[0] ** 2

    final = toy.refine(loss, evaluations=400)
    least = 0
    for weight, target in zip(toy.originals, targets, strict=True):
        near = np.linspace(0.6, 1.6, 400) * lp_scale(weight, Grid(3), 2).item()
        least += min(quantized_error(weight.numpy(), scale, target) for scale in near)
    assert toy.log_scales[0] ** 2 < 0.01
    assert least <= final + 1e-9 and final <= 1.1 * least
    assert final <= min(toy.seen[:5])


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    inputs=st.integers(1, 4), seed=st.integers(0, 10**6), evaluations=st.integers(1, 60), roughness=st.floats(0.1, 500)
)
def test_search_ends_at_the_lowest_loss_seen(inputs, seed, evaluations, roughness):
    """On a loss with many minima, never above the best start."""
    toy = Toy(inputs, seed=seed)
    phase = np.random.default_rng(seed).uniform(0, 6, inputs)
    final = toy.refine(lambda toy: np.sin(roughness * toy.log_scales + phase).sum(), evaluations)
    assert final == min(toy.seen)
    assert final <= min(toy.seen[: len(EXPONENTS) + 1])
    assert len(toy.seen) <= len(EXPONENTS) + 2 + evaluations


def test_first_starts_are_the_lp_scales_of_the_exponents():
    toy, seen = Toy(inputs=3), []
    toy.refine(lambda toy: (seen.append([s.item() for s in toy.scales]), 1.0)[1], evaluations=3)
    np.testing.assert_allclose(np.array(seen[:5]).T, starts(toy), rtol=1e-6)


def test_loss_without_any_slope_leaves_usable_scales():
    toy = Toy(inputs=2, weights=1)
    assert toy.refine(lambda toy: 0.0, evaluations=30) == 0
    assert np.isfinite(toy.log_scales).all() and toy.codes[0].scale.isfinite().all()
