"""Compiled inner loops for CPUs. Each has its oracle in plain torch operations, which also serve GPUs."""

import numba
import numpy as np
import torch
from torch import Tensor

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)  # exact in every dtype, and no reason to leave float32
_NEVER = np.float32(1e30)  # the cost of a step that must not be taken
LEAST_GAIN = np.float32(1e-6)  # of a step's own α² A_nn: less is rounding
ROWS = 16  # rows that share one read of a row of the Gram matrix while it is in cache


def descend_planes(planes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor, residual: Tensor, rounds: int) -> int:
    """Rounds of coordinate descent over all planes, the scale optimised between two rounds; returns how many it took.

    In place on planes int8 (P, G, M, N), scale (G, M) and residual = cross − scale · codes · gram (G, M, N); all but
    the planes in one dtype, contiguous and on the CPU. A row none of whose planes changed in a round is done. An update
    costs N operations, and only where a coordinate moves: late rounds, in which few do, cost next to nothing.
    """
    tensors = (planes, scale, gram, cross, residual)
    return _descend_planes(*(tensor.numpy() for tensor in tensors), like(residual, 0), rounds)


def descend(
    codes: Tensor,
    scale: Tensor,
    gram: Tensor,
    cross: Tensor,
    residual: Tensor,
    high: int,
    rounds: int,
    tolerance: float,
) -> None:
    """Coordinate descent on integer codes, the scale optimised after every round, in place on codes (G, M, N), scale
    (G, M) and residual = cross − scale · codes · gram (G, M, N); all in one dtype, contiguous and on the CPU.

    A row is done when no code moves any more, or a round lowers f by less than `tolerance` of what all have.
    """
    arrays = (tensor.numpy() for tensor in (codes, scale, gram, cross, residual))
    _descend(*arrays, like(codes, high), rounds, tolerance)


def exchange(
    codes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor, residual: Tensor, high: int, rounds: int
) -> None:
    """At most `rounds` rounds of steps by two coordinates at once, with arguments as those of `descend`, in place.

    For each coordinate in turn, its cheaper step by one and the step by one of any other that lowers f most. A pair
    that lowers f has a cheaper half, which costs less than α² |A_nm|: coordinates whose steps cost more than
    α² `strongest_coupling` are passed over.
    """
    diagonal = gram.diagonal(dim1=-2, dim2=-1).contiguous()
    tensors = (codes, scale, gram, diagonal, strongest_coupling(gram), cross, residual)
    _exchange(*(tensor.numpy() for tensor in tensors), like(codes, high), rounds)


def strongest_coupling(gram: Tensor) -> Tensor:
    """max_m≠n |A_nm| for every coordinate n, (G, N)."""
    coupling = gram.abs()
    coupling.diagonal(dim1=-2, dim2=-1).zero_()
    return coupling.amax(dim=-1)


def like(tensor: Tensor, number: float) -> np.floating:
    """`number` in the tensor's dtype: an integer among float32 would turn the loops into float64."""
    return tensor.numpy().dtype.type(number)


def fake_quantize(values: Tensor, scale: float, low: int, high: int) -> Tensor:
    """`values`, float32, rounded to the codes low..high times `scale`: one pass over the memory, not four."""
    # Dense in whatever order of dimensions (channels last, say), so that memory is read from its start to its end.
    result = torch.empty_like(values)
    if result.stride() != values.stride():
        values = result.copy_(values)
    size = (values.numel(),)
    _fake_quantize(
        values.as_strided(size, (1,)).numpy(), np.float32(scale), low, high, result.as_strided(size, (1,)).numpy()
    )
    return result


@numba.njit(parallel=True, cache=True)
def _fake_quantize(values, scale, low, high, result):
    smallest, largest = np.float32(low), np.float32(high)
    for i in numba.prange(len(values)):
        code = np.rint(values[i] / scale)
        result[i] = scale * (smallest if code < smallest else largest if code > largest else code)


# Contracted: a fused product and sum rounds once, as one in float64 that is stored in float32 does.
@numba.njit(parallel=True, cache=True, fastmath={"contract"})
def _descend_planes(planes, scale, gram, cross, residual, zero, rounds):
    groups, rows, inputs = residual.shape
    tiles = (rows + ROWS - 1) // ROWS
    taken = np.zeros(groups * tiles, np.int64)
    for tile in numba.prange(groups * tiles):
        g = tile // tiles
        first = tile % tiles * ROWS
        left = min(first + ROWS, rows) - first
        active, moved = np.arange(first, first + left), np.zeros(left, np.bool_)
        codes = np.full((left, inputs), zero)
        for m in range(len(planes)):
            codes += planes[m, g, first : first + left] * np.float32(2**m)
        while left > 0 and taken[tile] < rounds:
            if taken[tile] > 0:
                for i in range(left):
                    row = active[i]
                    _rescale(codes[row - first], scale[g], row, cross[g, row], residual[g, row])
            taken[tile] += 1
            moved[:left] = False
            for m in range(len(planes) - 1, -1, -1):
                step = np.float32(2**m)
                for n in range(inputs):
                    diagonal = gram[g, n, n]
                    if diagonal == 0:
                        continue
                    for i in range(left):
                        row = active[i]
                        unit = scale[g, row] * step
                        if unit == 0:
                            continue
                        before = planes[m, g, row, n]
                        best = np.rint(before + residual[g, row, n] / (np.float64(unit) * diagonal))
                        after = np.int8(min(max(best, -1), 1))
                        if after != before:
                            planes[m, g, row, n] = after
                            codes[row - first, n] += step * np.float32(after - before)
                            change = unit * np.float32(after - before)
                            for k in range(inputs):
                                residual[g, row, k] -= change * gram[g, n, k]
                            moved[i] = True
            kept = 0
            for i in range(left):
                if moved[i]:
                    active[kept] = active[i]
                    kept += 1
            left = kept
    return taken.max()


@numba.njit(parallel=True, cache=True)
def _descend(codes, scale, gram, cross, residual, high, rounds, tolerance):
    groups, rows, inputs = codes.shape
    tiles = (rows + ROWS - 1) // ROWS
    for tile in numba.prange(groups * tiles):
        g = tile // tiles
        first = tile % tiles * ROWS
        left = min(first + ROWS, rows) - first
        active = np.arange(first, first + left)
        gain, total = np.zeros(left), np.zeros(left)
        for _ in range(rounds):
            gain[:left] = 0
            for n in range(inputs):
                diagonal = gram[g, n, n]
                if diagonal <= 0:
                    continue
                for i in range(left):
                    row = active[i]
                    curvature = scale[g, row] * diagonal
                    pull = residual[g, row, n]
                    if TWO * abs(pull) <= curvature or curvature <= 0:
                        continue
                    before = codes[g, row, n]
                    after = min(max(np.rint(before + pull / curvature), -high), high)
                    if after != before:
                        codes[g, row, n] = after
                        change = scale[g, row] * (after - before)
                        gain[i] += change * (TWO * pull - change * diagonal)
                        for k in range(inputs):
                            residual[g, row, k] -= change * gram[g, n, k]
            kept = 0
            for i in range(left):
                row = active[i]
                _rescale(codes[g, row], scale[g], row, cross[g, row], residual[g, row])
                total[i] += gain[i]
                if gain[i] > tolerance * total[i]:
                    active[kept], total[kept] = row, total[i]
                    kept += 1
            left = kept
            if left == 0:
                break


@numba.njit(parallel=True, cache=True)
def _exchange(codes, scale, gram, diagonal, coupling, cross, residual, high, rounds):
    groups, rows, inputs = codes.shape
    tiles = (rows + ROWS - 1) // ROWS
    for tile in numba.prange(groups * tiles):
        g = tile // tiles
        first = tile % tiles * ROWS
        left = min(first + ROWS, rows) - first
        active = np.arange(first, first + left)
        moves, scratch = np.zeros(left, np.int64), np.empty(inputs, codes.dtype)
        up, down = np.empty((left, inputs), codes.dtype), np.empty((left, inputs), codes.dtype)
        for _ in range(rounds):
            for i in range(left):
                row, moves[i] = active[i], 0
                _step_costs(codes[g, row], scale[g, row], diagonal[g], residual[g, row], high, up[i], down[i])
            for n in range(inputs):
                for i in range(left):
                    own, row, unit = min(up[i, n], down[i, n]), active[i], scale[g, active[i]]
                    if own >= unit * unit * coupling[g, n]:
                        continue
                    step = ONE if up[i, n] < down[i, n] else -ONE
                    joint = TWO * unit * unit * step
                    enough = -own - LEAST_GAIN * unit * unit * diagonal[g, n]
                    # Most coordinates find no partner: which one it is is asked only then.
                    if _least_of_pairs(up[i], down[i], joint, gram[g, n], scratch) >= enough:
                        continue
                    partner, other, least = -1, ONE, _NEVER
                    for k in range(inputs):
                        if k != n and up[i, k] + joint * gram[g, n, k] < least:
                            partner, other, least = k, ONE, up[i, k] + joint * gram[g, n, k]
                        if k != n and down[i, k] - joint * gram[g, n, k] < least:
                            partner, other, least = k, -ONE, down[i, k] - joint * gram[g, n, k]
                    if least >= enough:
                        continue
                    codes[g, row, n] += step
                    codes[g, row, partner] += other
                    for k in range(inputs):
                        residual[g, row, k] -= unit * (step * gram[g, n, k] + other * gram[g, partner, k])
                    _step_costs(codes[g, row], unit, diagonal[g], residual[g, row], high, up[i], down[i])
                    moves[i] += 1
            kept = 0
            for i in range(left):
                row = active[i]
                _rescale(codes[g, row], scale[g], row, cross[g, row], residual[g, row])
                if moves[i] > 0:
                    active[kept] = row
                    kept += 1
            left = kept
            if left == 0:
                break


@numba.njit
def _least_of_pairs(up, down, joint, gram, scratch):
    """The least cost of a partner's step, in loops that a compiler can vectorise: a running minimum is not one."""
    count = len(up)
    for k in range(count):
        one, other = up[k] + joint * gram[k], down[k] - joint * gram[k]
        scratch[k] = one if one < other else other
    while count > 1:
        half = (count + 1) // 2
        for k in range(count - half):
            scratch[k] = scratch[k] if scratch[k] < scratch[half + k] else scratch[half + k]
        count = half
    return scratch[0]


@numba.njit
def _step_costs(codes, unit, diagonal, residual, high, up, down):
    """What f gains in each coordinate by a step of one up and down; `_NEVER` where the grid ends or A_nn = 0."""
    for k in range(len(codes)):
        own, pull = unit * unit * diagonal[k], TWO * unit * residual[k]
        up[k] = own - pull if codes[k] < high and own > 0 else _NEVER
        down[k] = own + pull if codes[k] > -high and own > 0 else _NEVER


@numba.njit
def _rescale(codes, scale, row, cross, residual):
    """The optimal scale of one row, and its residual: c − α'Aq from c − αAq."""
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
