"""The compiled loops against plain ones: the same names, arguments, changes in place and results."""

import inspect

import numpy as np
import plain
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loops import CHANGES, on_plain_loops, rounded_layer, run, run_both
from problems import assert_on, cases, grids, problem, relu_layer

from bitsplit.grid import Grid
from bitsplit.solver import compiled
from bitsplit.solver.bitsplit import ALGORITHMS, ROUNDS, bit_split, solve, split, stitch
from bitsplit.solver.gptq import damped, mean_damping
from bitsplit.solver.objective import objective, optimal_scale

# Names and arguments


def test_both_files_have_the_same_loops_with_the_same_arguments():
    assert set(plain.__all__) == set(compiled.__all__) == set(CHANGES)
    for name in CHANGES:
        assert inspect.signature(getattr(compiled, name)) == inspect.signature(getattr(plain, name))


@pytest.mark.parametrize(
    "algorithm, midrise", [*((name, False) for name in ALGORITHMS), ("integers", True), ("lattice", True)]
)
@pytest.mark.parametrize("bits", [2, 4])
def test_every_algorithm_gives_the_same_integers_on_the_plain_loops(algorithm, midrise, bits):
    layers = [problem(*relu_layer(seed, 30, 9)[:2]) for seed in range(2)]
    gram, cross, weight = (torch.stack(parts) for parts in zip(*layers, strict=True))
    arguments = gram, cross, bits, weight, algorithm, ROUNDS, midrise
    solution, expected = solve(*arguments), on_plain_loops(solve, *arguments)
    assert torch.equal(solution.codes, expected.codes) and solution.rounds == expected.rounds
    torch.testing.assert_close(solution.scale, expected.scale)


# descend_plane and rescale


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(1, 5, 9), (1, 1, 40), (1, 20, 65), (3, 4, 70), (4, 5, 20), (6, 1, 9)])
def test_a_compiled_round_is_the_plain_one_bit_for_bit_where_arithmetic_is_exact(bits, shape):
    """Integers and powers of two leave no rounding, so ties too must fall alike, and the residuals be equal."""
    random = np.random.default_rng(bits)
    signs = torch.tensor(random.choice([-1.0, 1.0], size=(*shape[:-2], shape[-1], 64)), dtype=torch.float32)
    gram = signs @ signs.mT  # 64 on the diagonal
    scale = torch.tensor(2.0 ** random.integers(-3, 3, size=shape[:-1]), dtype=torch.float32)
    planes = torch.tensor(random.integers(-1, 2, size=(bits - 1, *shape)), dtype=torch.int8)
    cross = torch.tensor(random.integers(-4000, 4000, size=shape), dtype=torch.float32) * scale.unsqueeze(-1)
    residual = cross - scale.unsqueeze(-1) * (stitch(planes).float() @ gram)
    start = planes.clone()
    for m in reversed(range(bits - 1)):
        (_, changed), (_, expected) = (
            run(loops, "descend_plane", planes[m], 2**m * scale, gram, residual) for loops in (compiled, plain)
        )
        assert torch.equal(changed["plane"], expected["plane"])
        assert torch.equal(changed["residual"], expected["residual"])
        planes[m], residual = changed["plane"], changed["residual"]
    assert not torch.equal(planes, start)
    assert torch.equal(residual, cross - scale.unsqueeze(-1) * (stitch(planes).float() @ gram))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_plane_moves_where_its_unit_is_not_zero(dtype):
    codes, scale, gram, _, residual = rounded_layer(0, Grid(3), 30, 6, dtype)
    gram[:, 4], gram[:, :, 4] = 0, 0  # an input that never carries a signal
    plane, unit = split(codes, 3)[1], 2 * scale
    unit[0, [1, 4]] = 0
    _, changed, _ = run_both("descend_plane", plane, unit, gram, residual)
    moved = (changed["plane"] != plane)[0]
    assert not moved[[1, 4]].any() and not moved[:, 4].any() and moved[[0, 2, 3, 5]].any()
    assert torch.equal(changed["residual"][0, [1, 4]], residual[0, [1, 4]])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("seed, inputs, outputs", [(0, 6, 1), (1, 40, 17), (2, 64, 8), (3, 150, 40)])
@pytest.mark.parametrize("sign", [1, -1])
def test_compiled_rounds_find_the_planes_of_the_plain_ones(bits, seed, inputs, outputs, sign):
    """Also from weights against the output, whose scale is negative until they have moved."""
    layer = problem(*relu_layer(seed, inputs, outputs)[:2], dtype=torch.float32)
    gram, cross, weight = (part.unsqueeze(0) for part in layer)
    for rounds in (1, 2, 4, 100):
        arguments = gram, cross, sign * weight, Grid(bits), rounds
        codes, scale, taken = bit_split(*arguments)
        expected, expected_scale, expected_taken = on_plain_loops(bit_split, *arguments)
        assert taken == expected_taken <= rounds
        assert torch.equal(codes, expected)
        torch.testing.assert_close(scale, expected_scale)
    assert taken < 100


@cases
@given(st.integers(0, 10**6), grids, st.integers(1, 40), st.integers(1, 20), st.sampled_from([1, -1]))
def test_rescaled_rows_have_their_optimal_scale(seed, grid, inputs, outputs, sign):
    """From any scale; a row below zero, of weights against the output, ends at its own optimum, below zero too."""
    codes, scale, gram, cross, _ = rounded_layer(seed, grid, inputs, outputs)
    random = torch.Generator().manual_seed(seed)
    codes[0, 0] = 0  # a row that reaches no output keeps its scale
    cross, scale = sign * cross, sign * scale * (0.5 + torch.rand(scale.shape, generator=random, dtype=scale.dtype))
    residual = cross - scale.unsqueeze(-1) * (codes @ gram)
    active = torch.rand(scale.shape, generator=random) < 0.7
    _, changed, _ = run_both("rescale", codes, scale, cross, residual, active)
    best = torch.where(active, optimal_scale(codes, gram, cross, scale), scale)
    best = torch.where(best * sign > 0, best, scale)
    torch.testing.assert_close(changed["scale"], best)
    torch.testing.assert_close(changed["residual"], cross - best.unsqueeze(-1) * (codes @ gram))


def test_a_scale_does_not_change_its_sign():
    """Rows whose codes point away from the output keep what they have until their codes move."""
    codes, scale, gram, cross, _ = rounded_layer(3, Grid(4), 12, 5)
    residual = -cross - scale.unsqueeze(-1) * (codes @ gram)
    everywhere = torch.ones_like(scale, dtype=torch.bool)
    _, changed, _ = run_both("rescale", codes, scale, -cross, residual, everywhere)
    assert torch.equal(changed["scale"], scale) and torch.equal(changed["residual"], residual)


# descend and exchange


@cases
@given(st.integers(0, 10**6), grids, st.integers(1, 100), st.integers(1, 20))
def test_compiled_descent_is_the_plain_one(seed, grid, inputs, outputs):
    layer = rounded_layer(seed, grid, inputs, outputs)
    counts = [run_both("descend", *layer, grid.high, rounds, 1e-4)[0] for rounds in (0, 1, 2, 100)]
    assert counts[0] == 0 and counts[1] == 1 and counts[2] == min(2, counts[3]) and counts[3] < 100


@pytest.mark.parametrize("tolerance", [0.0, 1e-4, 0.3])
def test_a_row_is_done_by_the_same_tolerance(tolerance):
    layer = rounded_layer(1, Grid(4), 60, 8)
    taken, changed, _ = run_both("descend", *layer, 7, 100, tolerance)
    assert {0.0: taken > 4, 1e-4: 3 < taken < 20, 0.3: taken <= 3}[tolerance], taken
    codes, scale, gram, cross, _ = layer
    assert (objective(changed["codes"], changed["scale"], gram, cross) < objective(codes, scale, gram, cross)).all()
    expected = cross - changed["scale"].unsqueeze(-1) * (changed["codes"] @ gram)
    torch.testing.assert_close(changed["residual"], expected)


@cases
@given(st.integers(0, 10**6), grids, st.integers(1, 40), st.integers(1, 6))
def test_compiled_exchanges_are_the_plain_ones_and_lower_the_objective(seed, grid, inputs, outputs):
    codes, scale, gram, cross, residual = rounded_layer(seed, grid, inputs, outputs)
    high = grid.high
    _, start = run(compiled, "descend", codes, scale, gram, cross, residual, high, 100, 1e-4)
    known = objective(start["codes"], start["scale"], gram, cross)
    for rounds in (1, 3):
        residual = cross - start["scale"].unsqueeze(-1) * (start["codes"] @ gram)
        _, changed, _ = run_both("exchange", start["codes"], start["scale"], gram, cross, residual, high, rounds)
        reached = changed["codes"] @ gram
        assert torch.allclose(changed["residual"], cross - changed["scale"].unsqueeze(-1) * reached)
        assert_on(grid, changed["codes"])
    assert (objective(changed["codes"], changed["scale"], gram, cross) <= known + 1e-12 * known.abs()).all()


# extend_paths and least_pivots


@cases
@given(
    seed=st.integers(0, 10**6),
    high=st.sampled_from([1, 1.5, 3, 3.5, 7]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 9)),
)
def test_compiled_paths_are_the_plain_ones(seed, high, shape):
    groups, rows, paths, columns = shape
    random = torch.Generator().manual_seed(seed)
    target = 2 * torch.randn(groups, rows, columns, generator=random, dtype=torch.float64)
    sums = torch.randn(groups, rows, paths, columns, generator=random, dtype=torch.float64)
    lower = torch.randn(groups, columns, columns, generator=random, dtype=torch.float64).tril(-1)
    lower += torch.eye(columns)
    pivots = torch.rand(groups, columns, generator=random, dtype=torch.float64) + 0.1
    alive = 1 + seed % paths
    cost = torch.linspace(0, 1, paths).double().expand(groups, rows, -1).clone()
    arguments = target, sums, lower, pivots, cost, alive, high
    (codes, parents), changed, (expected, expected_parents) = run_both("extend_paths", *arguments)
    there = changed["cost"].isfinite()
    assert codes.shape == expected.shape and parents.shape == expected_parents.shape
    assert torch.equal(codes[there], expected[there]) and (codes[there] % 1 == high % 1).all()
    assert torch.equal(parents[there], expected_parents[there])


@cases
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 150))
def test_compiled_pivots_are_the_plain_ones(seed, groups, inputs):
    gram = torch.stack([problem(*relu_layer(seed + group, inputs, 1)[:2])[0] for group in range(groups)])
    gram, count = damped(gram, mean_damping(gram)), (inputs + 1) // 2
    (taken, factor), changed, (expected, expected_factor) = run_both("least_pivots", gram, count)
    assert torch.equal(taken, expected) and torch.allclose(factor, expected_factor)
    marked = changed["gram"].diagonal(dim1=-2, dim2=-1).isinf()
    assert torch.equal(marked.nonzero()[:, 1].view(groups, count), taken.sort(dim=-1).values)
