"""Bit-split and GPTQ as their authors publish them: what the benchmarks compare the solver with.

`bitsplit.solver` finds what they find in another way ("planes") or on another grid ("gptq"); no step is shared with it.
"""

import time

import numpy as np
import torch
from torch import Tensor

from bitsplit.grid import Grid
from bitsplit.solver.bitsplit import ROUNDS
from bitsplit.solver.objective import objective, optimal_scale

_BLOCK, _DAMPING = 128, 0.01  # columns, and part of the mean diagonal, of published GPTQ
_TIMED_ROUNDS = 1  # of all; the rest take as long, for the published code does the same work in each


def published_round(planes: list[np.ndarray], x: np.ndarray, y: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """One round of bit-split as the published code organises it, in place on planes (M, N); returns the scale (M,).

    Outputs Y (M, K) and patches X (N, K) are kept; each plane costs a product of the other planes with X and walks
    over the columns with its own output at hand (`docs/method.md`, section 3).
    """
    codes = sum(2**m * plane for m, plane in enumerate(planes))
    output = codes @ x
    scale = (output * y).sum(axis=1) / (output * output).sum(axis=1)
    for m in reversed(range(len(planes))):
        others = sum(2**i * plane for i, plane in enumerate(planes) if i != m)
        unit = scale * 2**m
        correlation = (y - scale[:, None] * (others @ x)) @ x.T  # the product K×N×M
        for n in range(len(x)):
            rest = planes[m] @ gram[n] - gram[n, n] * planes[m][:, n]
            free = (correlation[:, n] - unit * rest) / (unit * gram[n, n])
            planes[m][:, n] = np.clip(np.rint(free), -1, 1)
    return scale


def published_seconds(weight: Tensor, patches: Tensor, bits: int) -> float:
    """Seconds of the published code's 100 rounds on (X, Y), from the few that are timed; its start is not counted."""
    x, w = np.ascontiguousarray(patches.numpy().T), weight.numpy()
    grid = Grid(bits)
    codes = grid.quantize(weight, grid.scale_by_alternation(weight).unsqueeze(-1)).numpy()
    planes = [np.sign(codes) * (np.abs(codes).astype(int) >> m & 1).astype(np.float32) for m in range(bits - 1)]
    y, gram = w @ x, x @ x.T
    start = time.perf_counter()
    for _ in range(_TIMED_ROUNDS):
        published_round(planes, x, y, gram)
    return (time.perf_counter() - start) / _TIMED_ROUNDS * ROUNDS


def published_gptq(gram: Tensor, weight: Tensor, bits: int, scale: Tensor) -> Tensor:
    """Codes (G, M, N) of GPTQ as it is published: column by column, lazy updates block by block, for all groups.

    Frantar et al., "GPTQ", ICLR 2023, Algorithm 1, with the scales (G, M) fixed.
    """
    grid, weight, inputs = Grid(bits), weight.clone(), gram.shape[-1]
    damped = gram.clone()
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1, keepdim=True)
    damped.diagonal(dim1=-2, dim2=-1).add_(_DAMPING * mean.where(mean > 0, 1))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    feedback = torch.linalg.cholesky(inverse, upper=True)
    codes = torch.empty_like(weight)
    for first in range(0, inputs, _BLOCK):
        last = min(first + _BLOCK, inputs)
        part, errors = weight[..., first:last].clone(), torch.empty_like(weight[..., first:last])
        inside = feedback[..., first:last, first:last]
        for n in range(last - first):
            column = part[..., n]
            codes[..., first + n] = grid.quantize(column, scale)
            error = (column - codes[..., first + n] * scale) / inside[..., n, n].unsqueeze(-1)
            part[..., n:] -= error.unsqueeze(-1) * inside[..., n, n:].unsqueeze(-2)
            errors[..., n] = error
        weight[..., last:] -= errors @ feedback[..., first:last, last:]
    return codes


def published_gptq_objective(gram: Tensor, cross: Tensor, weight: Tensor, bits: int) -> Tensor:
    """q-part of f (G, M) of published GPTQ: the grid of the largest weight, then the optimal scale."""
    scale = Grid(bits).scale_by_max(weight)
    codes = published_gptq(gram, weight, bits, scale)
    return objective(codes, optimal_scale(codes, gram, cross, scale), gram, cross)
