"""The loops of the solver as Triton kernels for GPUs; `plain` has the same names, the same contract, and what each one
is for.

In plain torch operations every coordinate costs a launch. Here a program follows a few rows through a whole block of
coordinates, or through all of them; what a block changes in the columns outside it is one matrix product, as there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitsplit.solver.kernels_search import extend_paths, least_pivots, round_half_even
from bitsplit.solver.objective import LEAST_GAIN, strongest_coupling
from bitsplit.solver.plain import descend_by, rescale

__all__ = ["descend", "descend_plane", "exchange", "extend_paths", "least_pivots", "rescale"]

_ROWS = 4  # rows of one program
_BLOCK = 64  # columns between two updates of the whole residual


def descend_plane(plane: Tensor, unit: Tensor, gram: Tensor, residual: Tensor) -> None:
    """As `plain.descend_plane`."""
    _descend_once(plane, unit, 1, gram, residual)


def descend(
    codes: Tensor,
    scale: Tensor,
    gram: Tensor,
    cross: Tensor,
    residual: Tensor,
    high: int,
    rounds: int,
    tolerance: float,
) -> int:
    """As `plain.descend`."""
    return descend_by(_descend_once, codes, scale, gram, cross, residual, high, rounds, tolerance)


def exchange(
    codes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor, residual: Tensor, high: int, rounds: int
) -> None:
    """As `plain.exchange`."""
    groups, rows, inputs = codes.shape
    diagonal, coupling = gram.diagonal(dim1=-2, dim2=-1).contiguous(), strongest_coupling(gram)
    everywhere = torch.ones_like(scale, dtype=torch.bool)
    sizes = rows, inputs, high, LEAST_GAIN, triton.next_power_of_2(inputs)
    for _ in range(rounds):
        before = codes.clone()
        tensors = (codes, scale, gram, diagonal, coupling, residual)
        _exchange_round[groups * rows,](*tensors, *sizes, num_warps=8 if inputs > 1024 else 4)
        rescale(codes, scale, gram, cross, residual, everywhere)
        if torch.equal(before, codes):
            break


def _descend_once(codes: Tensor, unit: Tensor, bound: int, gram: Tensor, residual: Tensor) -> None:
    """As `plain`'s: one round over all columns, block by block."""
    groups, rows, inputs = residual.shape
    change = residual.new_empty(groups, rows, _BLOCK)
    programs = groups, triton.cdiv(rows, _ROWS)
    for start in range(0, inputs, _BLOCK):
        tensors = (codes, unit, gram, residual, change)
        _descend_block[programs](*tensors, rows, inputs, start, bound, _ROWS, _BLOCK, num_warps=1)
        columns = slice(start, min(start + _BLOCK, inputs))
        residual.baddbmm_(change[..., : columns.stop - start], gram[:, columns], alpha=-1)


# for n = start … start + B, for every row:
#     q' ← clip(round(q_n + r_n / (u A_nn)), −bound, bound);   change_n ← u (q' − q_n);   q_n ← q'
#     r_k ← r_k − change_n A_nk for all k of the block
@triton.jit(do_not_specialize=["rows", "start", "bound"])
def _descend_block(
    codes, unit, gram, residual, change, rows, inputs, start, bound, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    group = tl.program_id(0).to(tl.int64)
    row, column = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    valid, width = row < rows, tl.minimum(BLOCK, inputs - start)
    row += group * rows
    gram += (group * inputs + start) * inputs + start
    codes += row * inputs + start
    place = row[:, None] * inputs + start + column[None, :]
    pull = tl.load(residual + place, valid[:, None] & (column < width)[None, :], 0)
    step = tl.load(unit + row, valid, 0)
    moves = tl.zeros_like(pull)
    for n in range(width):
        here = (column == n)[None, :]
        curvature = step * tl.load(gram + n * inputs + n)
        free = tl.sum(tl.where(here, pull, 0), 1) / tl.where(curvature == 0, 1, curvature)
        before = tl.load(codes + n, valid, 0).to(pull.dtype)
        best = round_half_even(before + tl.where(curvature == 0, 0, free))
        best = tl.minimum(tl.maximum(best, -bound), bound)
        tl.store(codes + n, best.to(codes.dtype.element_ty), valid)
        move = step * (best - before)
        moves = tl.where(here, move[:, None], moves)
        pull -= move[:, None] * tl.load(gram + n * inputs + column, column < width, 0)[None, :]
    tl.store(change + row[:, None] * BLOCK + column[None, :], moves, valid[:, None])


# for n = 1 … N, for every row:
#     s ← the cheaper of the steps ±1 of q_n;  skip n if it costs α² max_m |A_nm| or more
#     (m, t) ← the step t = ±1 of another q_m of least cost(s) + cost(t) + 2 α² s t A_nm
#     if that is below 0:   q_n ← q_n + s;   q_m ← q_m + t;   r ← r − α (s A_n + t A_m)
@triton.jit(do_not_specialize=["rows", "high"])
def _exchange_round(
    codes, scale, gram, diagonal, coupling, residual, rows, inputs, high, least_gain, WIDTH: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    gram += row // rows * inputs * inputs
    diagonal += row // rows * inputs
    coupling += row // rows * inputs
    codes += row * inputs
    residual += row * inputs
    unit = tl.load(scale + row)
    column = tl.arange(0, WIDTH)
    inside = column < inputs
    curvature = unit * unit * tl.load(diagonal + column, inside, 0)
    for n in range(inputs):
        code, single = tl.load(codes + n), unit * unit * tl.load(diagonal + n)
        up, down = _step_costs(code, single, unit * tl.load(residual + n), high)
        cost = tl.minimum(up, down)
        if cost < unit * unit * tl.load(coupling + n):
            pull, held = tl.load(residual + column, inside, 0), tl.load(codes + column, inside, 0)
            near = tl.load(gram + n * inputs + column, inside, 0)
            step = tl.where(up < down, 1.0, -1.0).to(pull.dtype)
            rise, fall = _step_costs(held, curvature, unit * pull, high)
            joint = 2 * unit * unit * step * near
            rise, fall = rise + joint, fall - joint
            least, partner = tl.min(
                tl.where(inside & (column != n), tl.minimum(rise, fall), float("inf")), 0, return_indices=True
            )
            if cost + least < -least_gain * single:
                chosen = column == partner
                other = tl.sum(tl.where(chosen, tl.where(rise <= fall, 1.0, -1.0), 0.0)).to(pull.dtype)
                moved = tl.where(column == n, step, tl.where(chosen, other, 0))
                far = tl.load(gram + partner * inputs + column, inside, 0)
                tl.store(codes + column, (held + moved).to(codes.dtype.element_ty), inside)
                tl.store(residual + column, pull - unit * (step * near + other * far), inside)
                tl.debug_barrier()  # other threads read next what this one has written


@triton.jit
def _step_costs(code, curvature, pull, high):
    """What f gains by a step of one up and down, pull = α r_n; ∞ where the grid ends or A_nn = 0."""
    up = tl.where((code < high) & (curvature > 0), curvature - 2 * pull, float("inf"))
    down = tl.where((code > -high) & (curvature > 0), curvature + 2 * pull, float("inf"))
    return up, down
