"""The lattice search against brute force and Schur complements."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import assert_on, cases, exhaustive, grids, problem, relu_layer

from bitsplit.grid import Grid
from bitsplit.solver.bitsplit import solve
from bitsplit.solver.gptq import DAMPING
from bitsplit.solver.integers import descend_integers
from bitsplit.solver.lattice import exchange_pairs, least_pivots_first
from bitsplit.solver.objective import objective


@cases
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 150))
def test_the_order_takes_the_least_conditional_variance_next(seed, groups, inputs):
    """Against Schur complements inverted from scratch at each step."""
    gram = torch.stack([problem(*relu_layer(seed + group, inputs, 1)[:2])[0] for group in range(groups)])
    order = least_pivots_first(gram)
    assert torch.equal(order.sort(dim=-1).values, torch.arange(inputs).expand(groups, -1))
    damped = gram + DAMPING * gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[:, None, None] * torch.eye(inputs)
    for group in range(groups):
        for step in range(0, inputs, max(1, inputs // 5)):
            taken, others = order[group, :step], order[group, step:]
            rest = damped[group][others][:, others]
            if step:
                across = damped[group][others][:, taken]
                rest = rest - across @ torch.linalg.solve(damped[group][taken][:, taken], across.mT)
            assert rest.diagonal()[0] <= rest.diagonal().min() * (1 + 1e-6)


@cases
@given(st.integers(0, 10**6), grids, st.integers(1, 40), st.integers(1, 6))
def test_exchanges_lower_the_objective(seed, grid, inputs, outputs):
    gram, cross, weight = (part[None] for part in problem(*relu_layer(seed, inputs, outputs)[:2]))
    scale = grid.scale_by_alternation(weight)
    point = descend_integers(grid.quantize(weight, scale.unsqueeze(-1)), scale, gram, cross, grid.high, 100)
    before = [part.clone() for part in point[:3]]
    known = objective(point.codes, point.scale, gram, cross)
    better = exchange_pairs(point, gram, cross, grid.high, 100)
    assert torch.allclose(better.residual, cross - better.scale.unsqueeze(-1) * (better.codes @ gram))
    assert (objective(better.codes, better.scale, gram, cross) <= known + 1e-9 * known.abs()).all()
    assert_on(grid, better.codes)
    assert all(torch.equal(*pair) for pair in zip(point[:3], before, strict=True))


def test_after_exchanges_no_pair_of_steps_is_left():
    """Brute force over all pairs of coordinates and steps, on a problem where one round leaves none."""
    gram, cross, weight = (part[None] for part in problem(*relu_layer(3, 9, 5)[:2]))
    start = descend_integers(weight.round(), weight.new_ones(1, 5), gram, cross, 3, 100)
    codes, scale, _, _ = exchange_pairs(start, gram, cross, 3, 100)
    best = objective(codes, scale, gram, cross)
    for n, m in itertools.combinations(range(9), 2):
        for first, second in itertools.product((-1, 1), repeat=2):
            moved = codes.clone()
            moved[..., n] += first
            moved[..., m] += second
            allowed = (moved.abs() <= 3).all(dim=-1)
            assert (objective(moved, scale, gram, cross) >= best - 1e-6 * best.abs())[allowed].all()


@pytest.mark.parametrize("grid", [Grid(2), Grid(3), Grid(2, midrise=True), Grid(3, midrise=True)])
def test_close_to_the_exhaustive_optimum(grid):
    """250 problems of 2 to 6 inputs: optimal in most, and hardly above the optimum on average."""
    excess = []
    for seed in range(250):
        gram, cross, weight = problem(*relu_layer(seed, 2 + seed % 5, 1)[:2])
        best = exhaustive(gram, cross[0], grid)
        solution = solve(gram, cross, grid.bits, weight=weight, algorithm="lattice", midrise=grid.midrise)
        reached = solution.objective.item()
        assert reached >= best - 1e-9 * abs(best)
        excess.append(reached / best)  # both are negative
    excess = 1 - np.array(excess)
    assert (excess < 1e-9).mean() >= 0.75 and excess.mean() < 0.005


def test_a_gram_matrix_of_low_rank_in_float32():
    weight, x, _ = relu_layer(0, 60, 8, patches=13)
    gram, cross, weight = problem(weight, x, dtype=torch.float32)
    errors = [solve(gram, cross, 4, weight=weight, algorithm=name).objective.sum() for name in ("planes", "lattice")]
    assert errors[1] < errors[0]


def test_every_pair_of_layouts():
    gram, cross, weight = problem(*relu_layer(2, 40, 7)[:2], dtype=torch.float32)
    results = [
        solve(g, c, 4, weight=w, algorithm="lattice").codes
        for g, c, w in itertools.product(
            (gram, gram.T), (cross, cross.T.contiguous().T), (weight, weight.T.contiguous().T)
        )
    ]
    assert all(torch.equal(results[0], other) for other in results)


def test_above_the_most_inputs_it_is_the_descent_from_rounded_weights(monkeypatch):
    gram, cross, weight = problem(*relu_layer(5, 30, 6)[:2])
    lattice, integers = (solve(gram, cross, 3, weight, algorithm) for algorithm in ("lattice", "integers"))
    monkeypatch.setattr("bitsplit.solver.lattice._MOST_INPUTS", 29)
    assert torch.equal(solve(gram, cross, 3, weight, "lattice").codes, integers.codes)
    assert not torch.equal(lattice.codes, integers.codes)
