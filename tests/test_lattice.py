"""The lattice search against GPTQ's error feedback, brute force, and its own plain version."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_solver import problem, relu_layer

from bitsplit import kernels, search_kernels
from bitsplit.grid import Grid
from bitsplit.lattice import (
    DAMPING,
    descend,
    descend_in_blocks,
    exchange,
    exchange_plainly,
    extend_paths,
    factored,
    k_best,
    least_pivots,
    least_pivots_first,
)
from bitsplit.solver import objective, optimal_scale, solve

cases = settings(deadline=None, max_examples=25, derandomize=True)


def gptq(weight, gram, scale, high):
    """Codes of GPTQ as published: columns from first to last, errors fed forward by the inverse's Cholesky factor."""
    damped = gram + DAMPING * np.mean(np.diag(gram)) * np.eye(len(gram))
    feedback = np.linalg.cholesky(np.linalg.inv(damped)).T  # upper triangular
    weight, codes = weight.copy(), np.zeros_like(weight)
    for n in range(len(gram)):
        codes[:, n] = np.clip(np.rint(weight[:, n] / scale), -high, high)
        error = (weight[:, n] - scale * codes[:, n]) / feedback[n, n]
        weight[:, n:] -= np.outer(error, feedback[n, n:])
    return codes


def exhaustive(gram, cross, high):
    """Least q-part of f of one row over all integers, each with its optimal scale."""
    grid = torch.arange(-high, high + 1.0, dtype=torch.float64)
    codes = torch.cartesian_prod(*[grid] * len(gram)).reshape(-1, len(gram))
    quadratic = ((codes @ gram) * codes).sum(dim=1)
    linear = codes @ cross
    return -(linear.square() / quadratic)[quadratic > 0].max().item()


@cases
@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(1, 150), st.integers(1, 6))
def test_one_path_is_the_error_feedback_of_gptq(seed, bits, inputs, outputs):
    gram, cross, weight = problem(*relu_layer(seed, inputs, outputs)[:2])
    grid, back = (
        Grid(bits),
        torch.arange(inputs - 1, -1, -1),
    )  # Babai's plane starts at the last column, GPTQ at the first
    scale = grid.scale_by_max(weight) * 0.8
    lower, pivots, target, _ = factored(gram[back][:, back][None], cross[:, back][None], weight[:, back][None])
    codes = k_best(target / scale[:, None], lower, pivots, grid.high, paths=1)[0]
    expected = gptq(weight.numpy(), gram.numpy(), scale.numpy(), grid.high)
    assert np.array_equal(codes[:, back].numpy(), expected)


def test_more_paths_come_nearer_and_enough_of_them_find_the_nearest_point():
    nearer = []
    for seed in range(40):
        gram, cross, weight = (part[None] for part in problem(*relu_layer(seed, 7, 3)[:2]))
        lower, pivots, target, _ = factored(gram, cross, weight)
        scale = Grid(2).scale_by_alternation(weight)
        target = target / scale.unsqueeze(-1)
        upper = lower.mT * pivots.sqrt().unsqueeze(-1)  # R
        everything = torch.cartesian_prod(*[torch.tensor([-1.0, 0, 1], dtype=torch.float64)] * 7)

        def distance(codes, upper=upper, target=target):
            return ((codes - target) @ upper.mT).square().sum(dim=-1)

        nearest = torch.stack([distance(codes) for codes in everything]).amin(dim=0)
        found = [distance(k_best(target, lower, pivots, 1, paths)) for paths in (1, 4, 128)]
        nearer.append([(one <= nearest + 1e-9).double().mean().item() for one in found])
    one, four, all_pairs = np.mean(nearer, axis=0)
    # 128 paths keep both of the two codes nearest to each centre; the third is hardly ever needed.
    assert one < four < all_pairs and all_pairs > 0.98


@cases
@given(
    seed=st.integers(0, 10**6),
    high=st.sampled_from([1, 3, 7]),
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
    cost, plain_cost = (torch.linspace(0, 1, paths).double().expand(groups, rows, -1).clone() for _ in range(2))
    codes, parents = search_kernels.extend_paths(target, sums, lower, pivots, cost, alive, high)
    plain, plain_parents = extend_paths(target, sums, lower, pivots, plain_cost, alive, high)
    there = plain_cost.isfinite()
    assert torch.equal(there, cost.isfinite()) and torch.allclose(cost[there], plain_cost[there])
    assert torch.equal(codes[there], plain[there]) and torch.equal(parents[there], plain_parents[there])


@cases
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 150))
def test_the_order_takes_the_least_conditional_variance_next(seed, groups, inputs):
    """Against Schur complements inverted from scratch at each step, and the compiled steps against the plain ones."""
    gram = torch.stack([problem(*relu_layer(seed + group, inputs, 1)[:2])[0] for group in range(groups)])
    order = least_pivots_first(gram)
    assert torch.equal(order.sort(dim=-1).values, torch.arange(inputs).expand(groups, -1))
    damped = gram + DAMPING * gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[:, None, None] * torch.eye(inputs)
    for group in range(groups):
        for step in range(0, inputs, max(1, inputs // 5)):
            taken, left = order[group, :step], order[group, step:]
            rest = damped[group][left][:, left]
            if step:
                across = damped[group][left][:, taken]
                rest = rest - across @ torch.linalg.solve(damped[group][taken][:, taken], across.mT)
            assert rest.diagonal()[0] <= rest.diagonal().min() * (1 + 1e-6)
    both = (search_kernels.least_pivots, least_pivots)
    compiled, plain = (steps(damped.clone(), (inputs + 1) // 2) for steps in both)
    assert torch.equal(compiled[0], plain[0]) and torch.allclose(compiled[1], plain[1])


@cases
@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(1, 100), st.integers(1, 20))
def test_compiled_descent_is_the_plain_one_and_never_raises_the_objective(seed, bits, inputs, outputs):
    gram, cross, weight = (part[None] for part in problem(*relu_layer(seed, inputs, outputs)[:2]))
    grid = Grid(bits)
    scale = grid.scale_by_max(weight)
    start = grid.quantize(weight, scale.unsqueeze(-1))
    known = objective(start, optimal_scale(start, gram, cross, scale), gram, cross)
    for rounds in (1, 2, 100):
        codes, own, _ = descend(start, scale, gram, cross, grid.high, rounds)
        assert codes.abs().max() <= grid.high
        value = objective(codes, own, gram, cross)
        assert (value <= known + 1e-9 * known.abs()).all()
        known = value
    first = optimal_scale(start, gram, cross, scale)
    first = torch.where(first > 0, first, scale)
    residual = cross - first.unsqueeze(-1) * (start @ gram)
    plain = start.clone()
    own = descend_in_blocks(plain, first, gram, cross, residual, grid.high, 2)
    codes, compiled, _ = descend(start, scale, gram, cross, grid.high, 2)
    assert torch.equal(codes, plain) and torch.allclose(own, compiled)


@cases
@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(1, 40), st.integers(1, 6))
def test_exchanges_lower_the_objective_and_the_compiled_ones_are_the_plain_ones(seed, bits, inputs, outputs):
    gram, cross, weight = (part[None] for part in problem(*relu_layer(seed, inputs, outputs)[:2]))
    grid = Grid(bits)
    scale = grid.scale_by_alternation(weight)
    point = descend(grid.quantize(weight, scale.unsqueeze(-1)), scale, gram, cross, grid.high, 100)
    codes, scale, _ = point
    known = objective(codes, scale, gram, cross)
    for rounds in (1, 3):
        residual = cross - scale.unsqueeze(-1) * (codes @ gram)
        plain, left = codes.clone(), residual.clone()
        plain_scale = exchange_plainly(plain, scale, gram, cross, left, grid.high, rounds)
        compiled, own = codes.clone(), scale.clone()
        kernels.exchange(compiled, own, gram, cross, residual, grid.high, rounds)
        assert torch.equal(plain, compiled) and torch.allclose(plain_scale, own)
        assert torch.allclose(left, cross - own.unsqueeze(-1) * (plain @ gram))
    assert (objective(plain, own, gram, cross) <= known + 1e-12 * known.abs()).all()
    found, own, left = exchange(point, gram, cross, grid.high)
    assert torch.allclose(left, cross - own.unsqueeze(-1) * (found @ gram))
    assert (objective(found, own, gram, cross) <= known + 1e-9 * known.abs()).all()
    assert found.abs().max() <= grid.high


def test_after_exchanges_no_pair_of_steps_is_left():
    """Brute force over all pairs of coordinates and steps, on a problem where one round leaves none."""
    gram, cross, weight = (part[None] for part in problem(*relu_layer(3, 9, 5)[:2]))
    codes, scale, _ = exchange(descend(weight.round(), weight.new_ones(1, 5), gram, cross, 3, 100), gram, cross, 3)
    best = objective(codes, scale, gram, cross)
    for n, m in itertools.combinations(range(9), 2):
        for first, second in itertools.product((-1, 1), repeat=2):
            moved = codes.clone()
            moved[..., n] += first
            moved[..., m] += second
            allowed = (moved.abs() <= 3).all(dim=-1)
            assert (objective(moved, scale, gram, cross) >= best - 1e-6 * best.abs())[allowed].all()


@pytest.mark.parametrize("bits", [2, 3])
def test_close_to_the_exhaustive_optimum(bits):
    """250 problems of 2 to 6 inputs: optimal in most, and hardly above the optimum on average."""
    excess = []
    for seed in range(250):
        gram, cross, weight = problem(*relu_layer(seed, 2 + seed % 5, 1)[:2])
        best = exhaustive(gram, cross[0], 2 ** (bits - 1) - 1)
        found = solve(gram, cross, bits, weight=weight, algorithm="lattice").objective.item()
        assert found >= best - 1e-9 * abs(best)
        excess.append(found / best)  # both are negative
    excess = 1 - np.array(excess)
    assert (excess < 1e-9).mean() >= 0.8 and excess.mean() < 0.005


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


@pytest.mark.parametrize("algorithm", ["integers", "lattice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_groups_and_rows_are_independent(algorithm, dtype):
    layers = [problem(*relu_layer(seed, 12, 5)[:2], dtype=dtype) for seed in range(3)]
    together = solve(*(torch.stack(parts) for parts in list(zip(*layers, strict=True))[:2]), 3, algorithm=algorithm)
    for group, (gram, cross, _) in enumerate(layers):
        alone = solve(gram, cross, 3, algorithm=algorithm)
        assert torch.equal(together.codes[group], alone.codes)
        row = solve(gram, cross[2:3], 3, algorithm=algorithm)
        assert torch.equal(row.codes[0], alone.codes[2])


@pytest.mark.parametrize("algorithm", ["integers", "lattice"])
@pytest.mark.parametrize("bits", [2, 5])
def test_zero_rows_and_dead_inputs(algorithm, bits):
    weight, x, _ = relu_layer(4, 20, 6)
    weight[1], x[[3, 7]] = 0, 0
    gram, cross, weight = problem(weight, x, dtype=torch.float32)
    found = solve(gram, cross, bits, weight=weight, algorithm=algorithm)
    assert (found.codes[1] == 0).all() and (found.codes[:, [3, 7]] == 0).all()
    assert found.scale.isfinite().all() and (found.scale > 0).all() and found.objective.isfinite().all()
    nothing = solve(torch.zeros_like(gram), torch.zeros_like(cross), bits, weight=weight, algorithm=algorithm)
    assert (nothing.codes == 0).all() and nothing.scale.isfinite().all()


def test_a_gram_matrix_of_low_rank_in_float32():
    weight, x, _ = relu_layer(0, 60, 8, patches=13)
    gram, cross, weight = problem(weight, x, dtype=torch.float32)
    errors = [solve(gram, cross, 4, weight=weight, algorithm=name).objective.sum() for name in ("planes", "lattice")]
    assert errors[1] < errors[0]


def test_targets_are_the_least_squares_weights_whatever_the_start():
    gram, cross, weight = problem(*relu_layer(1, 30, 4)[:2])
    _, _, target, offset = factored(gram[None], cross[None], (2 * weight)[None])
    damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(30)
    expected = (cross + DAMPING * gram.diagonal().mean() * 2 * weight) @ torch.linalg.inv(damped)
    assert torch.allclose(target[0], expected) and torch.allclose(offset[0], cross - expected @ gram)


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
    monkeypatch.setattr("bitsplit.lattice._MOST_INPUTS", 29)
    assert torch.equal(solve(gram, cross, 3, weight, "lattice").codes, integers.codes)
    assert not torch.equal(lattice.codes, integers.codes)
