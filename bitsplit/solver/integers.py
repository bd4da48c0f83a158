"""Coordinate descent on whole integers instead of ternary planes: every coordinate may take any value of the grid."""

from typing import NamedTuple

import torch
from torch import Tensor

from bitsplit.grid import Grid
from bitsplit.solver import compiled
from bitsplit.solver.objective import optimal_scale, rest_dead_inputs

TOLERANCE = 1e-4  # a round of descent that gains less of what all rounds have gained is a row's last


class Point(NamedTuple):
    """A candidate for every row: codes (G, M, N) in the dtype of `gram`, scale (G, M), residual c − αAq (G, M, N), and
    the most rounds of descent that a row of it took."""

    codes: Tensor
    scale: Tensor
    residual: Tensor
    rounds: int


def integers(gram: Tensor, cross: Tensor, weight: Tensor, grid: Grid, rounds: int) -> tuple[Tensor, Tensor, int]:
    """Coordinate descent on the stitched integers from the weights rounded at the alternation's scale.

    Returns codes (G, M, N) in the dtype of `gram`, the scale (G, M), and the rounds it took.
    """
    point = refine_rounding(gram, cross, weight, grid.scale_by_alternation(weight), grid, rounds)
    return point.codes, point.scale, point.rounds


def refine_rounding(gram: Tensor, cross: Tensor, weight: Tensor, scale: Tensor, grid: Grid, rounds: int) -> Point:
    """`descend_integers` from the weights rounded at `scale`."""
    codes = rest_dead_inputs(grid.quantize(weight, scale.unsqueeze(-1)), gram, grid)
    return descend_integers(codes, scale, gram, cross, grid.high, rounds)


def descend_integers(codes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor, high: float, rounds: int) -> Point:
    """Coordinate descent on integer codes with the scale optimised before and after every round; at most `rounds`.

    A coordinate moves to the code nearest to its free optimum q_n + (c − αAq)_n / (α A_nn), so f never rises. Rows
    that have converged are left alone.
    """
    codes = codes.clone(memory_format=torch.contiguous_format)
    reached = codes @ gram
    best = optimal_scale(codes, gram, cross, scale, reached)
    scale = torch.where(best > 0, best, scale).contiguous()
    residual = cross - scale.unsqueeze(-1) * reached
    taken = compiled.descend(codes, scale, gram.contiguous(), cross.contiguous(), residual, high, rounds, TOLERANCE)
    return Point(codes, scale, residual, taken)
