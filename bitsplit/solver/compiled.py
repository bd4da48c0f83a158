"""The loops of the solver, compiled for CPUs. What they change they change in place; shapes as in `bitsplit`.

Above each loop its pseudocode, in the paper's letters: A gram, c cross, r = c − αAq residual, u = 2^(m−1) α unit. Rows
(output channels) are independent. All tensors of a call have one dtype, but for planes int8, and are contiguous.
"""

import numba
import numpy as np
from torch import Tensor

from bitsplit.solver.compiled_search import extend_paths, least_pivots
from bitsplit.solver.objective import LEAST_GAIN, strongest_coupling
from bitsplit.solver.tiles import count_tiles, keep_rows, like, nearest_code, tile_rows

__all__ = ["descend", "descend_plane", "exchange", "extend_paths", "least_pivots", "rescale"]

_ONE, _TWO = np.float32(1), np.float32(2)  # exact in every dtype, and no reason to leave float32
_NEVER = np.float32(1e30)  # the cost of a step that must not be taken
_LEAST_GAIN = np.float32(LEAST_GAIN)


def descend_plane(plane: Tensor, unit: Tensor, gram: Tensor, residual: Tensor) -> None:
    """The m-th bit step: one round over all coordinates of a ternary plane (G, M, N), each moved to its best value.

    In place on the plane and the residual c − αAq (G, M, N). unit (G, M) = 2^(m−1) α is what a one in the plane adds to
    the weight; rows whose unit is 0 are left alone. An update costs N operations, and only where a coordinate moves.
    """
    _descend_plane(*(tensor.numpy() for tensor in (plane, unit, gram, residual)))


def rescale(codes: Tensor, scale: Tensor, cross: Tensor, residual: Tensor, active: Tensor) -> None:
    """The optimal scale for codes (G, M, N) of the rows that are `active` (G, M), where its sign stays.

    In place on scale (G, M) and residual = c − αAq (G, M, N). α Aq is read off the residual.
    """
    _rescale(*(tensor.numpy() for tensor in (codes, scale, cross, residual, active)))


def descend(
    codes: Tensor,
    scale: Tensor,
    gram: Tensor,
    cross: Tensor,
    residual: Tensor,
    high: float,
    rounds: int,
    tolerance: float,
) -> int:
    """Coordinate descent on the codes −high, 1 − high, …, high, integers or half integers as `high` is, and the scale
    optimised after every round; returns the rounds taken.

    In place on codes (G, M, N), scale (G, M) and residual = cross − scale · codes · gram (G, M, N). A row is done when
    no code moves any more, or a round lowers f by less than `tolerance` of what all have.
    """
    arrays = (tensor.numpy() for tensor in (codes, scale, gram, cross, residual))
    return int(_descend(*arrays, like(codes, high), rounds, tolerance))


def exchange(
    codes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor, residual: Tensor, high: float, rounds: int
) -> None:
    """At most `rounds` rounds of steps by two coordinates at once, with arguments as those of `descend`, in place.

    For each coordinate in turn, its cheaper step by one and the step by one of any other that lowers f most. A pair
    that lowers f has a cheaper half, which costs less than α² |A_nm|: coordinates whose steps cost more than
    α² `strongest_coupling` are passed over.
    """
    diagonal = gram.diagonal(dim1=-2, dim2=-1).contiguous()
    tensors = (codes, scale, gram, diagonal, strongest_coupling(gram), cross, residual)
    _exchange(*(tensor.numpy() for tensor in tensors), like(codes, high), rounds)


# for n = 1 … N, for every row:
#     q' ← clip(round(q_n + r_n / (u A_nn)), −1, 1)
#     if q' ≠ q_n:   r ← r − u (q' − q_n) A_n;   q_n ← q'
# Contracted: a fused product and sum rounds once, as one in float64 that is stored in float32 does.
@numba.njit(parallel=True, cache=True, fastmath={"contract"})
def _descend_plane(plane, unit, gram, residual):
    groups, rows, inputs = residual.shape
    for tile in numba.prange(count_tiles(groups, rows)):
        g, first, last = tile_rows(tile, rows)
        for n in range(inputs):
            diagonal = gram[g, n, n]
            if diagonal <= 0:
                continue
            for row in range(first, last):
                if unit[g, row] == 0:
                    continue
                before = plane[g, row, n]
                best = np.rint(before + residual[g, row, n] / (np.float64(unit[g, row]) * diagonal))
                after = np.int8(min(max(best, -1), 1))
                if after != before:
                    plane[g, row, n] = after
                    change = unit[g, row] * np.float32(after - before)
                    for k in range(inputs):
                        residual[g, row, k] -= change * gram[g, n, k]


# for every active row:   α' ← qᵀc / qᵀAq;   r ← c − α'Aq
@numba.njit(parallel=True, cache=True)
def _rescale(codes, scale, cross, residual, active):
    groups, rows, _ = codes.shape
    for row in numba.prange(groups * rows):
        g, i = row // rows, row % rows
        if active[g, i]:
            _rescale_row(codes[g, i], scale[g], i, cross[g, i], residual[g, i])


# repeat at most `rounds` times, for every row that is not done:
#     for n = 1 … N:   q' ← clip(nearest(q_n + r_n / (α A_nn)), −high, high);   Δ ← α (q' − q_n)
#                      gain ← gain + Δ (2 r_n − Δ A_nn);   r ← r − Δ A_n;   q_n ← q'
#     α ← qᵀc / qᵀAq;   r ← c − αAq
#     done if this round's gain ≤ tolerance · the gain of all rounds
@numba.njit(parallel=True, cache=True)
def _descend(codes, scale, gram, cross, residual, high, rounds, tolerance):
    groups, rows, inputs = codes.shape
    taken = np.zeros(max(1, count_tiles(groups, rows)), np.int64)
    for tile in numba.prange(count_tiles(groups, rows)):
        g, first, last = tile_rows(tile, rows)
        count = last - first
        active, unfinished = np.arange(first, last), np.zeros(count, np.bool_)
        gain, total = np.zeros(count), np.zeros(count)
        while count > 0 and taken[tile] < rounds:
            taken[tile] += 1
            gain[:] = 0
            for n in range(inputs):
                diagonal = gram[g, n, n]
                if diagonal <= 0:
                    continue
                for i in range(count):
                    row = active[i]
                    curvature = scale[g, row] * diagonal
                    pull = residual[g, row, n]
                    if _TWO * abs(pull) <= curvature or curvature <= 0:
                        continue
                    before = codes[g, row, n]
                    after = min(max(nearest_code(before + pull / curvature, high), -high), high)
                    if after != before:
                        codes[g, row, n] = after
                        change = scale[g, row] * (after - before)
                        gain[row - first] += change * (_TWO * pull - change * diagonal)
                        for k in range(inputs):
                            residual[g, row, k] -= change * gram[g, n, k]
            for i in range(count):
                row = active[i]
                _rescale_row(codes[g, row], scale[g], row, cross[g, row], residual[g, row])
                total[row - first] += gain[row - first]
                unfinished[i] = gain[row - first] > tolerance * total[row - first]
            count = keep_rows(active, count, unfinished)
    return taken.max()


# repeat at most `rounds` times, for every row that still moves:
#     for n = 1 … N:   s ← the cheaper of the steps ±1 of q_n;  skip n if it costs α² max_m |A_nm| or more
#                      (m, t) ← the step t = ±1 of another q_m of least cost(s) + cost(t) + 2 α² s t A_nm
#                      if that is below 0:   q_n ← q_n + s;   q_m ← q_m + t;   r ← r − α (s A_n + t A_m)
#     α ← qᵀc / qᵀAq;   r ← c − αAq
@numba.njit(parallel=True, cache=True)
def _exchange(codes, scale, gram, diagonal, coupling, cross, residual, high, rounds):
    groups, rows, inputs = codes.shape
    for tile in numba.prange(count_tiles(groups, rows)):
        g, first, last = tile_rows(tile, rows)
        count = last - first
        active, moved, scratch = np.arange(first, last), np.zeros(count, np.bool_), np.empty(inputs, codes.dtype)
        up, down = np.empty((count, inputs), codes.dtype), np.empty((count, inputs), codes.dtype)
        for _ in range(rounds):
            for i in range(count):
                row, moved[i] = active[i], False
                _step_costs(codes[g, row], scale[g, row], diagonal[g], residual[g, row], high, up[i], down[i])
            for n in range(inputs):
                for i in range(count):
                    single, row, unit = min(up[i, n], down[i, n]), active[i], scale[g, active[i]]
                    if single >= unit * unit * coupling[g, n]:
                        continue
                    step = _ONE if up[i, n] < down[i, n] else -_ONE
                    joint = _TWO * unit * unit * step
                    enough = -single - _LEAST_GAIN * unit * unit * diagonal[g, n]
                    # Most coordinates find no partner: which one it is is asked only then.
                    if _least_of_pairs(up[i], down[i], joint, gram[g, n], scratch) >= enough:
                        continue
                    partner, other, least = _partner(up[i], down[i], joint, gram[g, n], n)
                    if least >= enough:
                        continue
                    codes[g, row, n] += step
                    codes[g, row, partner] += other
                    for k in range(inputs):
                        residual[g, row, k] -= unit * (step * gram[g, n, k] + other * gram[g, partner, k])
                    _step_costs(codes[g, row], unit, diagonal[g], residual[g, row], high, up[i], down[i])
                    moved[i] = True
            for i in range(count):
                row = active[i]
                _rescale_row(codes[g, row], scale[g], row, cross[g, row], residual[g, row])
            count = keep_rows(active, count, moved)
            if count == 0:
                break


@numba.njit
def _least_of_pairs(up, down, joint, gram, scratch):
    """The least cost of a partner's step, in loops that a compiler can vectorise: a running minimum is not one."""
    count = len(up)
    for k in range(count):
        rise, fall = up[k] + joint * gram[k], down[k] - joint * gram[k]
        scratch[k] = rise if rise < fall else fall
    while count > 1:
        half = (count + 1) // 2
        for k in range(count - half):
            scratch[k] = scratch[k] if scratch[k] < scratch[half + k] else scratch[half + k]
        count = half
    return scratch[0]


@numba.njit
def _partner(up, down, joint, gram, n):
    """(coordinate other than n, its step, cost) of the least cost of a partner's step."""
    partner, step, least = -1, _ONE, _NEVER
    for k in range(len(up)):
        if k != n and up[k] + joint * gram[k] < least:
            partner, step, least = k, _ONE, up[k] + joint * gram[k]
        if k != n and down[k] - joint * gram[k] < least:
            partner, step, least = k, -_ONE, down[k] - joint * gram[k]
    return partner, step, least


@numba.njit
def _step_costs(codes, unit, diagonal, residual, high, up, down):
    """What f gains in each coordinate by a step of one up and down; `_NEVER` where the grid ends or A_nn = 0."""
    for k in range(len(codes)):
        curvature, pull = unit * unit * diagonal[k], _TWO * unit * residual[k]
        up[k] = curvature - pull if codes[k] < high and curvature > 0 else _NEVER
        down[k] = curvature + pull if codes[k] > -high and curvature > 0 else _NEVER


@numba.njit
def _rescale_row(codes, scale, row, cross, residual):
    """The optimal scale of one row where its sign stays, and its residual: c − α'Aq from c − αAq."""
    linear, reached = 0.0, 0.0
    for k in range(len(codes)):
        linear += codes[k] * cross[k]
        reached += codes[k] * (cross[k] - residual[k])  # α qᵀA q
    if linear * reached <= 0:
        return
    ratio = linear / reached
    scale[row] *= ratio
    for k in range(len(codes)):
        residual[k] = cross[k] - ratio * (cross[k] - residual[k])
