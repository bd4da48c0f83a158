"""Layers for the solver's tests, and what they are compared with: brute force and GPTQ as published."""

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from bitsplit.grid import Grid

cases = settings(deadline=None, max_examples=25, derandomize=True)
grids = st.builds(Grid, st.integers(2, 8), midrise=st.booleans())  # of weights


def relu_layer(seed, inputs, outputs, patches=None):
    """Weights (M, N), correlated inputs X (N, K) as after a ReLU, and outputs Y (M, K), K > N."""
    random = np.random.default_rng(seed)
    patches = patches or 4 * inputs + 20
    mixing = random.standard_normal((inputs, max(2, inputs // 2)))
    x = mixing @ random.standard_normal((mixing.shape[1], patches)) + random.standard_normal((inputs, patches))
    x = np.maximum(x + 0.3, 0)
    weight = random.standard_normal((outputs, inputs)) * np.exp(random.standard_normal((outputs, 1)))
    return weight, x, weight @ x


def problem(weight, x, dtype=torch.float64):
    """(gram, cross, weight) as tensors, averaged over the patches."""
    gram = x @ x.T / x.shape[1]
    return tuple(torch.tensor(values, dtype=dtype) for values in (gram, weight @ gram, weight))


def squared_error(solution, x, y):
    """||y - alpha q X||^2 of every row, from the data itself."""
    q, scale = solution.codes.double().numpy(), solution.scale.double().numpy()
    return ((y - scale[:, None] * (q @ x)) ** 2).sum(axis=1)


def assert_on(grid, codes):
    """Codes before an offset is taken from them are all on the grid."""
    assert codes.abs().max() <= grid.high and (codes % 1 == grid.high % 1).all()


def exhaustive(gram, cross, grid):
    """Least q-part of f of one row over all codes of the grid, each row of them with its optimal scale."""
    values = torch.arange(grid.low, grid.high + 1.0, dtype=torch.float64)
    codes = torch.cartesian_prod(*[values] * len(gram)).reshape(-1, len(gram))
    quadratic = ((codes @ gram) * codes).sum(dim=1)
    linear = codes @ cross
    return -(linear.square() / quadratic)[quadratic > 0].max().item()


def published_gptq(weight, gram, scale, high):
    """Codes of GPTQ as published: columns from first to last, errors fed forward by the inverse's Cholesky factor."""
    damped = gram + 0.01 * np.mean(np.diag(gram)) * np.eye(len(gram))
    feedback = np.linalg.cholesky(np.linalg.inv(damped)).T  # upper triangular
    weight, codes = weight.copy(), np.zeros_like(weight)
    for n in range(len(gram)):
        codes[:, n] = np.clip(np.rint(weight[:, n] / scale), -high, high)
        error = (weight[:, n] - scale * codes[:, n]) / feedback[n, n]
        weight[:, n:] -= np.outer(error, feedback[n, n:])
    return codes
