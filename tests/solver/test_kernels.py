"""Triton's kernels against the plain loops: on a GPU where there is one, else in Triton's interpreter on the CPU."""

import inspect

import pytest
import torch
from loops import CHANGES, rounded_layer, run_both
from problems import problem, relu_layer

from bitsplit.grid import Grid
from bitsplit.solver import plain
from bitsplit.solver.bitsplit import ALGORITHMS, bit_split, solve, split
from bitsplit.solver.gptq import damped, mean_damping
from bitsplit.solver.objective import objective

GPU = torch.cuda.is_available()
kernels = pytest.importorskip("bitsplit.solver.kernels", reason="needs Triton, which is for Linux")
DEVICE = "cuda" if GPU else "cpu"
# The interpreter takes a tenth of a second for what a GPU does in microseconds.
SEEDS = range(20 if GPU else 2)


def on_device(*values):
    return tuple(value.to(DEVICE) if isinstance(value, torch.Tensor) else value for value in values)


def test_the_kernels_have_the_names_and_arguments_of_the_plain_loops():
    assert set(kernels.__all__) == set(CHANGES)
    for name in CHANGES:
        assert inspect.signature(getattr(kernels, name)) == inspect.signature(getattr(plain, name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inputs, outputs", [(9, 1), (70, 5)])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_plane_descends_as_the_plain_one(seed, inputs, outputs, dtype):
    codes, scale, gram, _, residual = rounded_layer(seed, 3, inputs, outputs, dtype)
    gram[:, 4], gram[:, :, 4] = 0, 0  # an input that never carries a signal
    plane, unit = split(codes, 3)[1], 2 * scale
    unit[0, outputs // 2] = 0
    arguments = on_device(plane, unit, gram, residual)
    _, changed, _ = run_both("descend_plane", *arguments, loops=kernels)
    assert torch.equal(changed["plane"][..., 4], arguments[0][..., 4])


@pytest.mark.parametrize("seed", SEEDS)
def test_integers_descend_and_exchange_as_the_plain_ones(seed):
    codes, scale, gram, cross, residual = on_device(*rounded_layer(seed, 4, 24, 6))
    high = Grid(4).high
    taken, start, _ = run_both("descend", codes, scale, gram, cross, residual, high, 100, 1e-4, loops=kernels)
    assert 1 < taken < 100
    point = (start["codes"], start["scale"], gram, cross, start["residual"], high)
    _, changed, _ = run_both("exchange", *point, 3, loops=kernels)
    known, better = (objective(each["codes"], each["scale"], gram, cross) for each in (start, changed))
    assert (better <= known + 1e-12 * known.abs()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("paths", [1, 2, 5, 8])
@pytest.mark.parametrize("seed", SEEDS)
def test_paths_are_extended_as_the_plain_ones(seed, paths, dtype):
    groups, rows, columns, high = 2, 3, 7, 3
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=dtype)

    lower = draw(groups, columns, columns).tril(-1) + torch.eye(columns)
    pivots, cost = draw(groups, columns).abs() + 0.1, torch.linspace(0, 1, paths, dtype=dtype).repeat(groups, rows, 1)
    target, sums = 2 * draw(groups, rows, columns), draw(groups, rows, paths, columns)
    arguments = on_device(target, sums, lower, pivots, cost, 1 + seed % paths, high)
    (codes, parents), changed, (expected, expected_parents) = run_both("extend_paths", *arguments, loops=kernels)
    there = changed["cost"].isfinite()
    assert codes.shape == expected.shape and parents.dtype == expected_parents.dtype and there.any()
    assert torch.equal(codes[there], expected[there]) and torch.equal(parents[there], expected_parents[there])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("inputs", [1, 9, 30])
def test_the_least_pivots_are_the_plain_ones(seed, inputs):
    layers = [problem(*relu_layer(seed + group, inputs, 1)[:2])[0] for group in range(2)]
    gram, count = torch.stack(layers), (inputs + 1) // 2
    gram = damped(gram, mean_damping(gram)).to(DEVICE)
    (taken, factor), changed, (expected, expected_factor) = run_both("least_pivots", gram, count, loops=kernels)
    assert torch.equal(taken, expected) and torch.allclose(factor, expected_factor)
    marked = changed["gram"].diagonal(dim1=-2, dim2=-1).isinf()
    assert torch.equal(marked.nonzero()[:, 1].view(2, count), taken.sort(dim=-1).values)


@pytest.mark.parametrize("bits", [2, 4])
def test_planes_are_found_from_weights_against_the_output_too(bits):
    gram, cross, weight = on_device(*(part.unsqueeze(0) for part in problem(*relu_layer(bits, 12, 3)[:2])))
    for sign in (1, -1):
        codes, scale, taken = bit_split(gram, cross, sign * weight, bits, 100, kernels)
        expected, expected_scale, expected_taken = bit_split(gram, cross, sign * weight, bits, 100, plain)
        assert taken == expected_taken and torch.equal(codes, expected)
        torch.testing.assert_close(scale, expected_scale)


@pytest.mark.cuda
@pytest.mark.skipif(not GPU, reason="no GPU")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("shape", [(1, 512, 1152), (64, 1, 9), (1, 100, 300), (4, 32, 144)])
def test_a_real_layer_is_solved_as_well_as_on_the_cpu(algorithm, shape):
    """Sums in another order may round a code the other way; the error of the output stays."""
    groups, rows, inputs = shape
    layers = [problem(*relu_layer(seed, inputs, rows)[:2], dtype=torch.float32) for seed in range(groups)]
    parts = [torch.stack(part) for part in zip(*layers, strict=True)]
    solutions = [
        solve(*(part.to(device) for part in parts[:2]), 4, parts[2].to(device), algorithm) for device in ("cuda", "cpu")
    ]
    energy = (parts[1].double() * parts[2].double()).sum()
    errors = [(energy + solution.objective.sum().cpu()) / energy for solution in solutions]
    assert abs(errors[0] / errors[1] - 1) < 0.01
    again = solve(*(part.to("cuda") for part in parts[:2]), 4, parts[2].to("cuda"), algorithm)
    assert torch.equal(again.codes, solutions[0].codes) and torch.equal(again.scale, solutions[0].scale)
