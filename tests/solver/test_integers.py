"""Coordinate descent on whole integers: its objective, its end, and its place between the algorithms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import assert_on, cases, grids, problem, relu_layer

from bitsplit.grid import Grid
from bitsplit.solver.bitsplit import solve
from bitsplit.solver.integers import descend_integers
from bitsplit.solver.objective import objective, optimal_scale


@cases
@given(st.integers(0, 10**6), grids, st.integers(1, 100), st.integers(1, 20))
def test_descent_never_raises_the_objective(seed, grid, inputs, outputs):
    gram, cross, weight = (part[None] for part in problem(*relu_layer(seed, inputs, outputs)[:2]))
    scale = grid.scale_by_max(weight)
    start = grid.quantize(weight, scale.unsqueeze(-1))
    arguments = start, scale, gram, cross
    before = [tensor.clone() for tensor in arguments]
    known = objective(start, optimal_scale(start, gram, cross, scale), gram, cross)
    for rounds in (1, 2, 100):
        point = descend_integers(*arguments, grid.high, rounds)
        assert_on(grid, point.codes)
        assert point.rounds <= rounds
        value = objective(point.codes, point.scale, gram, cross)
        assert (value <= known + 1e-9 * known.abs()).all()
        expected = cross - point.scale.unsqueeze(-1) * (point.codes @ gram)
        torch.testing.assert_close(point.residual, expected)
        known = value
    assert all(torch.equal(*pair) for pair in zip(arguments, before, strict=True))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_no_single_step_is_left_at_the_end(bits):
    """Brute force over all coordinates and all integers of the grid, but for what the tolerance leaves."""
    gram, cross, weight = problem(*relu_layer(bits, 14, 6)[:2])
    solution, high = solve(gram, cross, bits, weight, "integers"), Grid(bits).high
    scale = solution.scale.double()
    best = objective(solution.codes, scale, gram, cross)
    for n in range(14):
        for code in range(-high, high + 1):
            moved = solution.codes.clone()
            moved[:, n] = code
            assert (objective(moved, scale, gram, cross) >= best - 1e-3 * best.abs()).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_order_of_the_algorithms(bits):
    """`lattice` is never above `integers`, row by row, and both are below the planes over a whole layer."""
    for seed in range(3):
        gram, cross, weight = problem(*relu_layer(seed, 90, 24)[:2])
        energy = (cross * weight).sum(dim=-1)
        errors = {
            name: solve(gram, cross, bits, weight=weight, algorithm=name).objective + energy
            for name in ("planes", "integers", "lattice")
        }
        assert (errors["lattice"] <= errors["integers"] + 1e-9 * energy).all()
        assert errors["lattice"].sum() < 0.9 * errors["planes"].sum()
