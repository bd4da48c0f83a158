"""The loops of the lattice search compiled for CPUs, a part of `compiled`.

Letters as in `lattice`: t target, U lower (transposed), D² pivots; the sums are s_n = Σ_j>n U_nj (q_j − t_j).
"""

import numba
import numpy as np
from torch import Tensor

from bitsplit.solver.tiles import ROWS, count_tiles, like, nearest_code, tile_rows

_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)  # exact in every dtype, and no reason to leave float32


def extend_paths(
    target: Tensor, sums: Tensor, lower: Tensor, pivots: Tensor, cost: Tensor, alive: int, high: float
) -> tuple[Tensor, Tensor]:
    """Chooses the codes of one block of columns, from its last to its first, keeping the K cheapest paths of each row.

    target (G, M, B), sums (G, M, K, B), lower (G, B, B) and pivots (G, B) as in `lattice`; cost (G, M, K) is updated in
    place. Codes are −high, 1 − high, …, high. Only the first `alive` paths of a row are there yet. Returns codes
    (G, M, K, B), and the path (G, M, K) that each one continues.
    """
    codes, parents = sums.new_empty(sums.shape), sums.new_zeros(cost.shape, dtype=int)
    arrays = [tensor.numpy() for tensor in (target, sums, lower, pivots, cost, codes)]
    if cost.shape[-1] == 1:
        _extend_path(*arrays, like(target, high))
    else:
        _extend_paths(*arrays, parents.numpy(), alive, like(target, high))
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


# for n = B … 1:   z ← t_n − s_n;   q_n ← clip(nearest(z));   cost ← cost + D_n² (q_n − z)²
#                  s_k ← s_k + U_kn (q_n − t_n) for all k < n
@numba.njit(parallel=True, cache=True)
def _extend_path(target, sums, lower, pivots, cost, codes, high):
    """`_extend_paths` for one path a row: rows side by side, in which the compiler finds its vectors."""
    groups, rows, columns = target.shape
    for tile in numba.prange(count_tiles(groups, rows)):
        g, first, last = tile_rows(tile, rows)
        count = last - first
        centre, code = np.zeros((columns, ROWS), target.dtype), np.empty((columns, ROWS), target.dtype)
        error, price = np.empty(ROWS, target.dtype), np.zeros(ROWS, target.dtype)
        aim = np.zeros((columns, ROWS), target.dtype)
        for i in range(count):
            for n in range(columns):
                aim[n, i] = target[g, first + i, n]
                centre[n, i] = aim[n, i] - sums[g, first + i, 0, n]
        for n in range(columns - 1, -1, -1):
            for i in range(ROWS):
                nearest = nearest_code(centre[n, i], high)
                nearest = high if nearest > high else nearest
                nearest = -high if nearest < -high else nearest
                off = nearest - centre[n, i]
                price[i] += pivots[g, n] * off * off
                code[n, i] = nearest
                error[i] = nearest - aim[n, i]
            for k in range(n):
                feedback = lower[g, n, k]
                for i in range(ROWS):
                    centre[k, i] -= feedback * error[i]
        for i in range(count):
            cost[g, first + i, 0] += price[i]
            for n in range(columns):
                codes[g, first + i, 0, n] = code[n, i]


# for n = B … 1:   for each of a row's paths:   z ← t_n − s_n;   two options: the codes nearest to z and next to it
#                  keep the K options of least cost + D_n² (q_n − z)², each with the sums and history of its path
#                  s_k ← s_k + U_kn (q_n − t_n) for all k < n
# then each path's codes are read back along its parents.
@numba.njit(parallel=True, cache=True)
def _extend_paths(target, sums, lower, pivots, cost, codes, parents, alive, high):
    groups, rows, paths, columns = sums.shape
    for tile in numba.prange((groups * rows + ROWS - 1) // ROWS):
        first = tile * ROWS
        width = min(first + ROWS, groups * rows) - first
        tree = np.zeros((2, ROWS, paths, columns), sums.dtype)  # the sums: one half is read, the other written
        price = np.full((paths, ROWS), np.inf, cost.dtype)
        option, value = np.empty((2 * paths, ROWS), sums.dtype), np.empty((2 * paths, ROWS), cost.dtype)
        aim, pivot = np.zeros(ROWS, sums.dtype), np.ones(ROWS, sums.dtype)
        choice = np.empty((columns, paths, ROWS), sums.dtype)
        origin = np.zeros((columns, paths, ROWS), np.int32)
        count, now = alive, 0
        for i in range(width):
            g, row = (first + i) // rows, (first + i) % rows
            for path in range(count):
                price[path, i] = cost[g, row, path]
                for k in range(columns):
                    tree[now, i, path, k] = sums[g, row, path, k]
        for n in range(columns - 1, -1, -1):
            for i in range(width):
                g, row = (first + i) // rows, (first + i) % rows
                aim[i], pivot[i] = target[g, row, n], pivots[g, n]
            _price_options(aim, tree[now], n, price, pivot, high, count, option, value)
            survivors = min(paths, 2 * count)
            _sort_least(value, 2 * count, price, origin[n], survivors)
            for i in range(width):
                g = (first + i) // rows
                for path in range(survivors):
                    code = option[origin[n, path, i], i]
                    before, error = origin[n, path, i] // 2, code - aim[i]
                    choice[n, path, i], origin[n, path, i] = code, before
                    # Columns that were chosen before are read no more: a fixed length is what vectors like.
                    for k in range(columns):
                        tree[1 - now, i, path, k] = tree[now, i, before, k] + lower[g, n, k] * error
            count, now = survivors, 1 - now
        for i in range(width):
            g, row = (first + i) // rows, (first + i) % rows
            _read_back(
                price[:, i], choice[:, :, i], origin[:, :, i], count, cost[g, row], codes[g, row], parents[g, row]
            )


@numba.njit(forceinline=True)
def _price_options(target, sums, n, price, pivot, high, count, option, value):
    """The two best codes of column n for each of the first `count` paths of every row, and their costs."""
    centre = np.empty(ROWS, sums.dtype)
    for path in range(count):
        for i in range(ROWS):
            centre[i] = target[i] - sums[i, path, n]
        for i in range(ROWS):
            nearest = min(max(nearest_code(centre[i], high), -high), high)
            step = _ONE if centre[i] > nearest else -_ONE
            beyond = _TWO if abs(nearest + step) > high else _ZERO
            second = nearest + step - beyond * step
            near, far = nearest - centre[i], second - centre[i]
            option[2 * path, i], option[2 * path + 1, i] = nearest, second
            value[2 * path, i] = price[path, i] + pivot[i] * near * near
            value[2 * path + 1, i] = price[path, i] + pivot[i] * far * far


@numba.njit
def _read_back(price, choice, origin, count, cost, codes, parents):
    """One row's codes along each path, the path that it continues, and its cost; paths that are not there cost ∞."""
    paths, columns = codes.shape
    for path in range(count):
        cost[path], place = price[path], path
        for n in range(columns):
            codes[path, n] = choice[n, place]
            place = origin[n, place]
        parents[path] = place
    for path in range(count, paths):
        cost[path], parents[path] = np.inf, parents[0]
        for n in range(columns):
            codes[path, n] = codes[0, n]


@numba.njit(forceinline=True)
def _sort_least(value, count, least, index, survivors):
    """The `survivors` least of the first `count` values of every row (values, rows), in order, and which they are.

    Insertion by comparisons and exchanges of all rows at once; `value` is used up. Labels are exchanged by XOR with a
    mask, for a branch would keep the compiler from treating the rows side by side.
    """
    label = np.empty(ROWS, np.int32)
    least[:survivors] = np.inf
    for c in range(count):
        label[:] = c
        for place in range(min(c + 1, survivors)):
            for i in range(ROWS):
                here, new = least[place, i], value[c, i]
                exchanged = (index[place, i] ^ label[i]) & -np.int32(new < here)
                least[place, i], value[c, i] = min(here, new), max(here, new)
                index[place, i] ^= exchanged
                label[i] ^= exchanged


# repeat `count` times:   p ← argmin_n pivot_n;   row ← A_p − Σ_earlier R_ep R_e;   R_p ← row / √pivot_p
#                         pivot_n ← pivot_n − R_pn² for all n
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
