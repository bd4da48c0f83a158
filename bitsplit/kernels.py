"""Compiled inner loops for CPUs. Each has its oracle in plain torch operations, which also serve GPUs."""

import numba
import numpy as np
import torch
from torch import Tensor

_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)  # exact in every dtype, and no reason to leave float32
_NEVER = np.float32(1e30)  # the cost of a step that must not be taken
LEAST_GAIN = np.float32(1e-6)  # of a step's own α² A_nn: less is rounding
_ROWS = 16  # rows that share one read of a row of the Gram matrix while it is in cache


def sweep(planes: Tensor, scale: Tensor, gram: Tensor, residual: Tensor) -> None:
    """One round of coordinate descent over all planes, in place on planes (P, G, M, N) and residual (G, M, N).

    scale (G, M) and gram (G, N, N) in the residual's dtype, all contiguous and on the CPU. An update costs N
    operations, and only where a coordinate moves: late rounds, in which few do, cost next to nothing.
    """
    _sweep(planes.numpy(), scale.numpy(), gram.numpy(), residual.numpy())


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
    _descend(*arrays, _like(codes, high), rounds, tolerance)


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
    _exchange(*(tensor.numpy() for tensor in tensors), _like(codes, high), rounds)


def strongest_coupling(gram: Tensor) -> Tensor:
    """max_m≠n |A_nm| for every coordinate n, (G, N)."""
    coupling = gram.abs()
    coupling.diagonal(dim1=-2, dim2=-1).zero_()
    return coupling.amax(dim=-1)


def extend_paths(
    target: Tensor, sums: Tensor, lower: Tensor, pivots: Tensor, cost: Tensor, alive: int, high: int
) -> tuple[Tensor, Tensor]:
    """Chooses the codes of one block of columns, from its last to its first, keeping the K cheapest paths of each row.

    target (G, M, B), sums (G, M, K, B), lower (G, B, B) and pivots (G, B) as in `lattice`; cost (G, M, K) is updated in
    place. Only the first `alive` paths of a row are there yet. Returns codes (G, M, K, B), and the path (G, M, K) that
    each one continues.
    """
    codes, parents = sums.new_empty(sums.shape), sums.new_zeros(cost.shape, dtype=int)
    arrays = [tensor.numpy() for tensor in (target, sums, lower, pivots, cost, codes)]
    if cost.shape[-1] == 1:
        _extend_path(*arrays, _like(target, high))
    else:
        _extend_paths(*arrays, parents.numpy(), alive, _like(target, high))
    return codes, parents


def least_pivots(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` steps of a Cholesky factorisation of gram (G, N, N) that always takes the least pivot next.

    Returns the coordinates taken (G, count), and the factor's rows (G, count, N), 0 where a coordinate is taken. Those
    are marked by ∞ on the diagonal, in place.
    """
    groups, inputs, _ = gram.shape
    taken, factor = gram.new_empty((groups, count), dtype=int), gram.new_zeros((groups, count, inputs))
    _least_pivots(gram.numpy(), taken.numpy(), factor.numpy())
    return taken, factor


def _like(tensor: Tensor, number: float) -> np.floating:
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
def _sweep(planes, scale, gram, residual):
    groups, rows, inputs = residual.shape
    tiles = (rows + _ROWS - 1) // _ROWS
    for tile in numba.prange(groups * tiles):
        g = tile // tiles
        first = tile % tiles * _ROWS
        last = min(first + _ROWS, rows)
        for m in range(len(planes) - 1, -1, -1):
            step = np.float32(2**m)
            for n in range(inputs):
                diagonal = gram[g, n, n]
                if diagonal == 0:
                    continue
                for row in range(first, last):
                    unit = scale[g, row] * step
                    if unit == 0:
                        continue
                    before = planes[m, g, row, n]
                    best = np.rint(before + residual[g, row, n] / (np.float64(unit) * diagonal))
                    after = np.int8(min(max(best, -1), 1))
                    if after != before:
                        planes[m, g, row, n] = after
                        change = unit * np.float32(after - before)
                        for k in range(inputs):
                            residual[g, row, k] -= change * gram[g, n, k]


@numba.njit(parallel=True, cache=True)
def _descend(codes, scale, gram, cross, residual, high, rounds, tolerance):
    groups, rows, inputs = codes.shape
    tiles = (rows + _ROWS - 1) // _ROWS
    for tile in numba.prange(groups * tiles):
        g = tile // tiles
        first = tile % tiles * _ROWS
        left = min(first + _ROWS, rows) - first
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
                    if _TWO * abs(pull) <= curvature or curvature <= 0:
                        continue
                    before = codes[g, row, n]
                    after = min(max(np.rint(before + pull / curvature), -high), high)
                    if after != before:
                        codes[g, row, n] = after
                        change = scale[g, row] * (after - before)
                        gain[i] += change * (_TWO * pull - change * diagonal)
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
    tiles = (rows + _ROWS - 1) // _ROWS
    for tile in numba.prange(groups * tiles):
        g = tile // tiles
        first = tile % tiles * _ROWS
        left = min(first + _ROWS, rows) - first
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
                    step = _ONE if up[i, n] < down[i, n] else -_ONE
                    joint = _TWO * unit * unit * step
                    enough = -own - LEAST_GAIN * unit * unit * diagonal[g, n]
                    # Most coordinates find no partner: which one it is is asked only then.
                    if _least_of_pairs(up[i], down[i], joint, gram[g, n], scratch) >= enough:
                        continue
                    partner, other, least = -1, _ONE, _NEVER
                    for k in range(inputs):
                        if k != n and up[i, k] + joint * gram[g, n, k] < least:
                            partner, other, least = k, _ONE, up[i, k] + joint * gram[g, n, k]
                        if k != n and down[i, k] - joint * gram[g, n, k] < least:
                            partner, other, least = k, -_ONE, down[i, k] - joint * gram[g, n, k]
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
        own, pull = unit * unit * diagonal[k], _TWO * unit * residual[k]
        up[k] = own - pull if codes[k] < high and own > 0 else _NEVER
        down[k] = own + pull if codes[k] > -high and own > 0 else _NEVER


@numba.njit
def _rescale(codes, scale, row, cross, residual):
    """The optimal scale of one row, and its residual: c − α'Aq from c − αAq."""
    linear, reached = 0.0, 0.0
    for k in range(len(codes)):
        linear += codes[k] * cross[k]
        reached += codes[k] * (cross[k] - residual[k])  # α qᵀA q
    if linear <= 0 or reached <= 0:
        return
    ratio = linear / reached
    scale[row] *= ratio
    for k in range(len(codes)):
        residual[k] = cross[k] - ratio * (cross[k] - residual[k])


@numba.njit(parallel=True, cache=True)
def _extend_path(target, sums, lower, pivots, cost, codes, high):
    """`_extend_paths` for one path a row: rows side by side, in which the compiler finds its vectors."""
    groups, rows, columns = target.shape
    tiles = (rows + _ROWS - 1) // _ROWS
    for tile in numba.prange(groups * tiles):
        g = tile // tiles
        first = tile % tiles * _ROWS
        count = min(first + _ROWS, rows) - first
        centre, code = np.zeros((columns, _ROWS), target.dtype), np.empty((columns, _ROWS), target.dtype)
        error, price = np.empty(_ROWS, target.dtype), np.zeros(_ROWS, target.dtype)
        aim = np.zeros((columns, _ROWS), target.dtype)
        for i in range(count):
            for n in range(columns):
                aim[n, i] = target[g, first + i, n]
                centre[n, i] = aim[n, i] - sums[g, first + i, 0, n]
        for n in range(columns - 1, -1, -1):
            for i in range(_ROWS):
                nearest = np.rint(centre[n, i])
                nearest = high if nearest > high else nearest
                nearest = -high if nearest < -high else nearest
                off = nearest - centre[n, i]
                price[i] += pivots[g, n] * off * off
                code[n, i] = nearest
                error[i] = nearest - aim[n, i]
            for k in range(n):
                feedback = lower[g, n, k]
                for i in range(_ROWS):
                    centre[k, i] -= feedback * error[i]
        for i in range(count):
            cost[g, first + i, 0] += price[i]
            for n in range(columns):
                codes[g, first + i, 0, n] = code[n, i]


@numba.njit(parallel=True, cache=True)
def _extend_paths(target, sums, lower, pivots, cost, codes, parents, alive, high):
    groups, rows, paths, columns = sums.shape
    for tile in numba.prange((groups * rows + _ROWS - 1) // _ROWS):
        first = tile * _ROWS
        width = min(first + _ROWS, groups * rows) - first
        tree = np.zeros((2, _ROWS, paths, columns), sums.dtype)  # the sums: one half is read, the other written
        price = np.full((paths, _ROWS), np.inf, cost.dtype)
        option, value = np.empty((2 * paths, _ROWS), sums.dtype), np.empty((2 * paths, _ROWS), cost.dtype)
        aim, centre, pivot = np.zeros(_ROWS, sums.dtype), np.empty(_ROWS, sums.dtype), np.ones(_ROWS, sums.dtype)
        choice = np.empty((columns, paths, _ROWS), sums.dtype)
        origin = np.zeros((columns, paths, _ROWS), np.int32)
        count, now = alive, 0
        for i in range(width):
            g, row = (first + i) // rows, (first + i) % rows
            for path in range(count):
                price[path, i] = cost[g, row, path]
                tree[now, i, path] = sums[g, row, path]
        for n in range(columns - 1, -1, -1):
            for i in range(width):
                g, row = (first + i) // rows, (first + i) % rows
                aim[i], pivot[i] = target[g, row, n], pivots[g, n]
            for path in range(count):
                for i in range(_ROWS):
                    centre[i] = aim[i] - tree[now, i, path, n]
                for i in range(_ROWS):
                    nearest = min(max(np.rint(centre[i]), -high), high)
                    step = _ONE if centre[i] > nearest else -_ONE
                    beyond = _TWO if abs(nearest + step) > high else _ZERO
                    second = nearest + step - beyond * step
                    one, other = nearest - centre[i], second - centre[i]
                    option[2 * path, i], option[2 * path + 1, i] = nearest, second
                    value[2 * path, i] = price[path, i] + pivot[i] * one * one
                    value[2 * path + 1, i] = price[path, i] + pivot[i] * other * other
            kept = min(paths, 2 * count)
            _sort_least(value, 2 * count, price, origin[n], kept)
            for i in range(width):
                g = (first + i) // rows
                for path in range(kept):
                    code = option[origin[n, path, i], i]
                    before, error = origin[n, path, i] // 2, code - aim[i]
                    choice[n, path, i], origin[n, path, i] = code, before
                    # Columns that were chosen before are read no more: a fixed length is what vectors like.
                    for k in range(columns):
                        tree[1 - now, i, path, k] = tree[now, i, before, k] + lower[g, n, k] * error
            count, now = kept, 1 - now
        for i in range(width):
            g, row = (first + i) // rows, (first + i) % rows
            for path in range(count):
                cost[g, row, path] = price[path, i]
                place = path
                for n in range(columns):
                    codes[g, row, path, n] = choice[n, place, i]
                    place = origin[n, place, i]
                parents[g, row, path] = place
            for path in range(count, paths):
                cost[g, row, path] = np.inf
                codes[g, row, path] = codes[g, row, 0]
                parents[g, row, path] = parents[g, row, 0]


@numba.njit(forceinline=True)
def _sort_least(value, count, least, index, kept):
    """The `kept` least of the first `count` values of every row (values, rows), in order, and which they are.

    Insertion by comparisons and exchanges of all rows at once; `value` is used up.
    """
    label = np.empty(_ROWS, np.int32)
    least[:kept] = np.inf
    for c in range(count):
        label[:] = c
        for place in range(min(c + 1, kept)):
            for i in range(_ROWS):
                here, new = least[place, i], value[c, i]
                exchanged = (index[place, i] ^ label[i]) & -np.int32(new < here)
                least[place, i], value[c, i] = min(here, new), max(here, new)
                index[place, i] ^= exchanged
                label[i] ^= exchanged


@numba.njit(parallel=True, cache=True)
def _least_pivots(gram, taken, factor):
    groups, count, inputs = factor.shape
    for g in numba.prange(groups):
        pivot = np.diag(gram[g]).copy()
        for step in range(count):
            best = -1
            for n in range(inputs):
                if best < 0 or pivot[n] < pivot[best]:
                    best = n
            least, pivot[best], gram[g, best, best], taken[g, step] = pivot[best], np.inf, np.inf, best
            if least <= 0:
                continue  # a coordinate that the others determine
            row = gram[g, best].copy()
            for earlier in range(step):
                share = factor[g, earlier, best]
                for n in range(inputs):
                    row[n] -= share * factor[g, earlier, n]
            root = np.sqrt(least)
            for n in range(inputs):
                factor[g, step, n] = row[n] / root if pivot[n] < np.inf else _ZERO
                pivot[n] -= factor[g, step, n] * factor[g, step, n]
