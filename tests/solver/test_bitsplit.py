"""Bit-split and stitching against a loop-by-loop transcription of the published algorithm, and brute force."""

import itertools

import numpy as np
import pytest
import torch
from problems import problem, relu_layer, squared_error

from bitsplit.solver.bitsplit import ROUNDS, solve, split, stitch


def digits(codes, bits):
    """Signed binary digits of integers, least significant first."""
    return [[int(np.sign(q)) * (abs(int(q)) >> m & 1) for q in codes] for m in range(bits - 1)]


def bit_split(planes, a, c, rounds):
    """Bit-split of one row on (A, c): planes are lists of -1, 0, 1, and go on from round to round."""
    planes = [np.array(plane, dtype=float) for plane in planes]
    for _ in range(rounds):
        before = [plane.copy() for plane in planes]
        q = sum(2**m * plane for m, plane in enumerate(planes))
        if q @ a @ q <= 0:
            break
        alpha = (q @ c) / (q @ a @ q)
        for m in reversed(range(len(planes))):
            others = sum((2**i * planes[i] for i in range(len(planes)) if i != m), np.zeros(len(c)))
            target = c - alpha * (a @ others)  # y_m X^T, the correlation that this plane has to explain
            unit = alpha * 2**m
            for n in range(len(c)):
                if a[n, n] > 0:
                    rest = a[n] @ planes[m] - a[n, n] * planes[m][n]
                    free = (target[n] - unit * rest) / (unit * a[n, n])
                    planes[m][n] = min(max(round(free), -1), 1)
        if all((old == new).all() for old, new in zip(before, planes, strict=True)):
            break  # all later rounds repeat this one
    return planes


def alternate(w, high):
    """fwa: codes and scale of one row of weights in weight space."""
    alpha, recent = np.abs(w).max() / high, []
    while alpha not in recent[-5:]:
        recent.append(alpha)
        q = np.clip(np.rint(w / alpha), -high, high)
        alpha = (w @ q) / (q @ q)
    return np.clip(np.rint(w / alpha), -high, high)


def transcribe(weight, x, y, bits):
    """The paper's section 3, as the published code organises it: codes (M, N) and scale (M,), float64, row by row."""
    a, identity, high = x @ x.T, np.eye(len(x)), 2 ** (bits - 1) - 1
    codes, scales = [], []
    for w, output in zip(weight, y, strict=True):
        c = x @ output
        planes = bit_split(digits(alternate(w, high), bits), identity, w, rounds=50)
        start = sum(2**m * plane for m, plane in enumerate(planes))
        planes = bit_split(digits(start, bits), a, c, rounds=100)
        q = sum(2**m * plane for m, plane in enumerate(planes))
        codes.append(q)
        scales.append((q @ c) / (q @ a @ q))
    return np.array(codes), np.array(scales)


# Planes


@pytest.mark.parametrize("bits", range(2, 9))
def test_split_and_stitch_are_inverse(bits):
    high = 2 ** (bits - 1) - 1
    codes = torch.arange(-high, high + 1).to(torch.int8)
    planes = split(codes, bits)
    assert planes.dtype == torch.int8 and planes.tolist() == digits(codes.tolist(), bits)
    assert torch.equal(stitch(planes), codes)


def test_figure_1_of_the_paper():
    assert stitch(torch.tensor([[1], [-1], [-1]], dtype=torch.int8)).tolist() == [-5]


@pytest.mark.parametrize("planes", [2, 3])
def test_stitch_of_all_planes_is_the_weighted_sum(planes):
    everything = list(itertools.product((-1, 0, 1), repeat=planes))
    stitched = stitch(torch.tensor(everything, dtype=torch.int8).T)
    assert stitched.tolist() == [sum(2**m * digit for m, digit in enumerate(row)) for row in everything]


# The published algorithm


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("seed, inputs, outputs", [(s, 6 + 34 * s // 9, 1 + (3 * s) % 8) for s in range(10)])
def test_solve_is_the_published_algorithm(bits, seed, inputs, outputs):
    weight, x, y = relu_layer(100 * bits + seed, inputs, outputs)
    codes, scale = transcribe(weight, x, y, bits)
    gram, cross, w = problem(weight, x)
    solution = solve(gram, cross, bits, weight=w)
    assert np.array_equal(solution.codes.numpy(), codes)
    np.testing.assert_allclose(solution.scale.numpy(), scale, rtol=1e-6)


# Optimality


def test_close_to_the_exhaustive_optimum():
    gaps = []
    for inputs in range(1, 6):
        layers = [relu_layer(1000 * inputs + seed, inputs, 1, patches=12) for seed in range(40)]
        gram, cross, weight = (torch.stack(part) for part in zip(*(problem(w, x) for w, x, _ in layers), strict=True))
        reached = solve(gram, cross, 3, weight=weight).objective.squeeze(-1).numpy()
        every = np.array(list(itertools.product(range(-3, 4), repeat=inputs)))
        every = every[every.any(axis=1)]
        linear = every @ cross.squeeze(1).numpy().T
        quadratic = np.einsum("qn,gnm,qm->qg", every, gram.numpy(), every, optimize=True)
        best = (-(linear**2) / quadratic).min(axis=0)
        assert (reached >= best - 1e-9 * np.maximum(1, np.abs(best))).all()
        gaps += list((reached - best) / np.abs(best))
    assert len(gaps) == 200
    assert np.mean(gaps) < 0.05


@pytest.mark.parametrize("bits", range(2, 9))
def test_error_never_rises_from_round_to_round(bits):
    weight, x, y = relu_layer(bits, inputs=48, outputs=12)
    gram, cross, w = problem(weight, x)
    errors = np.array([squared_error(solve(gram, cross, bits, w, rounds=k), x, y) for k in range(12)])
    energy = (y**2).sum(axis=1)
    assert (np.diff(errors, axis=0) <= 1e-9 * energy).all()
    assert errors[-1].sum() < 0.95 * errors[0].sum()


@pytest.mark.parametrize("bits", [3, 4])
def test_result_ends_at_a_fixed_point(bits):
    gram, cross, weight = problem(*relu_layer(7, inputs=30, outputs=8)[:2])
    solution = solve(gram, cross, bits, weight=weight)
    assert solution.rounds < ROUNDS
    longer = solve(gram, cross, bits, weight=weight, rounds=solution.rounds + 20)
    assert torch.equal(solution.codes, longer.codes) and solution.rounds == longer.rounds
    shorter = solve(gram, cross, bits, weight=weight, rounds=solution.rounds - 2)
    assert not torch.equal(solution.codes, shorter.codes)  # all rounds but the last moved something
