"""GPTQ's error feedback as a nearest-plane search, against GPTQ as published."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import cases, problem, published_gptq, relu_layer

from bitsplit.grid import Grid
from bitsplit.solver.bitsplit import solve
from bitsplit.solver.gptq import DAMPING, factored, k_best
from bitsplit.solver.objective import optimal_scale


@cases
@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(1, 150), st.integers(1, 6))
def test_one_path_is_the_error_feedback_of_gptq(seed, bits, inputs, outputs):
    gram, cross, weight = problem(*relu_layer(seed, inputs, outputs)[:2])
    # Babai's plane starts at the last column, GPTQ at the first.
    grid, back = Grid(bits), torch.arange(inputs - 1, -1, -1)
    scale = grid.scale_by_max(weight) * 0.8
    lower, pivots, target, _ = factored(gram[back][:, back][None], cross[:, back][None], weight[:, back][None])
    codes = k_best(target / scale[:, None], lower, pivots, grid.high, 1)[0]
    expected = published_gptq(weight.numpy(), gram.numpy(), scale.numpy(), grid.high)
    assert np.array_equal(codes[:, back].numpy(), expected)


@cases
@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(1, 150), st.integers(1, 6))
def test_the_algorithm_is_published_gptq_at_the_alternations_scale(seed, bits, inputs, outputs):
    gram, cross, weight = problem(*relu_layer(seed, inputs, outputs)[:2])
    scale, high = Grid(bits).scale_by_alternation(weight), Grid(bits).high
    expected = torch.tensor(published_gptq(weight.numpy(), gram.numpy(), scale.numpy(), high))
    solution = solve(gram, cross, bits, weight, "gptq")
    best = optimal_scale(expected, gram, cross, scale)
    mirror = torch.where(best < 0, -1, 1)
    assert torch.equal(solution.codes, (expected * mirror.unsqueeze(-1)).to(torch.int8))
    torch.testing.assert_close(solution.scale, best.abs().float())
    assert solution.rounds == 0


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_feedback_lowers_the_error_of_rounded_weights(bits):
    gram, cross, weight = problem(*relu_layer(bits, 90, 24)[:2])
    energy = (cross * weight).sum()
    rounded = solve(gram, cross, bits, weight, "integers", rounds=0).objective.sum() + energy
    assert solve(gram, cross, bits, weight, "gptq").objective.sum() + energy < 0.7 * rounded


def test_targets_are_the_least_squares_weights_whatever_the_start():
    gram, cross, weight = problem(*relu_layer(1, 30, 4)[:2])
    _, _, target, offset = factored(gram[None], cross[None], (2 * weight)[None])
    damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(30)
    expected = (cross + DAMPING * gram.diagonal().mean() * 2 * weight) @ torch.linalg.inv(damped)
    assert torch.allclose(target[0], expected) and torch.allclose(offset[0], cross - expected @ gram)


def test_more_paths_come_nearer_and_enough_of_them_find_the_nearest_point():
    nearer = []
    for seed in range(40):
        gram, cross, weight = (part[None] for part in problem(*relu_layer(seed, 7, 3)[:2]))
        lower, pivots, target, _ = factored(gram, cross, weight)
        scale = Grid(2).scale_by_alternation(weight)
        target = target / scale.unsqueeze(-1)
        upper = lower.mT * pivots.sqrt().unsqueeze(-1)  # R
        everything = torch.cartesian_prod(*[torch.tensor([-1.0, 0, 1], dtype=torch.float64)] * 7)[:, None, None]

        def distance(codes, upper=upper, target=target):
            return ((codes - target) @ upper.mT).square().sum(dim=-1)

        nearest = distance(everything).amin(dim=0)
        distances = [distance(k_best(target, lower, pivots, 1, paths)) for paths in (1, 4, 128)]
        nearer.append([(reached <= nearest + 1e-9).double().mean().item() for reached in distances])
    one, four, all_pairs = np.mean(nearer, axis=0)
    # 128 paths keep both of the two codes nearest to each centre; the third is hardly ever needed.
    assert one < four < all_pairs and all_pairs > 0.98
