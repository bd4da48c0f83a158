"""The loops of the lattice search as Triton kernels, a part of `kernels`; `plain` has the same names and contract.

Letters as in `lattice`: t target, U lower (transposed), D² pivots; the sums are s_n = Σ_j>n U_nj (q_j − t_j).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 4  # rows of one program


def extend_paths(
    target: Tensor, sums: Tensor, lower: Tensor, pivots: Tensor, cost: Tensor, alive: int, high: int
) -> tuple[Tensor, Tensor]:
    """As `plain.extend_paths`."""
    groups, rows, paths, columns = sums.shape
    if paths == 1:
        codes, parents = torch.empty_like(sums), torch.zeros_like(cost, dtype=torch.int64)
        programs, block = (groups, triton.cdiv(rows, _ROWS)), triton.next_power_of_2(columns)
        tensors = (target, sums, lower, pivots, cost, codes)
        _extend_path[programs](*tensors, rows, columns, high, _ROWS, block, num_warps=1)
        return codes, parents
    # Two copies of each path: one is read, the other written. Sums before column n, codes from it on.
    tree = torch.stack([sums, torch.empty_like(sums)])
    parents = torch.empty_like(cost, dtype=torch.int64)
    sizes = (rows, paths, columns, triton.next_power_of_2(paths), triton.next_power_of_2(columns))
    _extend_paths[groups * rows,](
        target, tree, lower, pivots, cost, parents, alive, high, sums.numel(), *sizes, num_warps=4
    )
    return tree[columns % 2], parents


def least_pivots(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `plain.least_pivots`."""
    groups, inputs, _ = gram.shape
    taken, factor = gram.new_empty((groups, count), dtype=torch.int64), gram.new_zeros((groups, count, inputs))
    pivot = gram.diagonal(dim1=-2, dim2=-1).contiguous()
    _least_pivots[groups,](gram, pivot, taken, factor, inputs, count, triton.next_power_of_2(inputs), num_warps=8)
    return taken, factor


# for n = B … 1:   z ← t_n − s_n;   q_n ← clip(round(z));   cost ← cost + D_n² (q_n − z)²
#                  s_k ← s_k + U_kn (q_n − t_n) for all k
@triton.jit(do_not_specialize=["rows", "high"])
def _extend_path(
    target, sums, lower, pivots, cost, codes, rows, columns, high, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    group = tl.program_id(0).to(tl.int64)
    row, column = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    valid, inside = row < rows, column < columns
    row += group * rows
    lower += group * columns * columns
    place, there = row[:, None] * columns + column[None, :], valid[:, None] & inside[None, :]
    sum_ = tl.load(sums + place, there, 0)
    price = tl.load(cost + row, valid, 0)
    for back in range(columns):
        n = columns - 1 - back
        aim = tl.load(target + row * columns + n, valid, 0)
        centre = aim - tl.sum(tl.where((column == n)[None, :], sum_, 0), 1)
        code = tl.minimum(tl.maximum(round_half_even(centre), -high), high)
        price += tl.load(pivots + group * columns + n) * (code - centre) * (code - centre)
        tl.store(codes + row * columns + n, code, valid)
        sum_ += (code - aim)[:, None] * tl.load(lower + n * columns + column, inside, 0)[None, :]
    tl.store(cost + row, price, valid)


# for n = B … 1:   for each of a row's paths:   z ← t_n − s_n;   two options: the integers nearest to z and next to it
#                  keep the K options of least cost + D_n² (q_n − z)², each with the sums and codes of its path
#                  s_k ← s_k + U_kn (q_n − t_n) for all k < n
@triton.jit(do_not_specialize=["alive", "high", "half", "rows", "paths"])
def _extend_paths(
    target, tree, lower, pivots, cost, parents, alive, high, half, rows, paths, columns,
    PATHS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    group = row // rows
    path, column = tl.arange(0, PATHS), tl.arange(0, BLOCK)
    there, inside = path < paths, column < columns
    every = there[:, None] & inside[None, :]
    lower += group * columns * columns
    read, write = tree + row * paths * columns, tree + half + row * paths * columns
    price = tl.load(cost + row * paths + path, path < alive, float("inf"))
    parent = path
    for back in range(columns):
        n = columns - 1 - back
        aim, pivot = tl.load(target + row * columns + n), tl.load(pivots + group * columns + n)
        centre = aim - tl.load(read + path * columns + n, there, 0)
        near, far = _two_nearest(centre, high)
        least, most = price + pivot * (near - centre) * (near - centre), price + pivot * (far - centre) * (far - centre)
        first, second = _kept(least, most, path)
        price = tl.where(there, tl.minimum(_taken(first, least), _taken(second, most)), float("inf"))
        code = tl.where(first, near[None, :], tl.where(second, far[None, :], 0))
        code = tl.sum(code, 1)
        origin = tl.sum(tl.where(first | second, path[None, :], 0), 1)
        parent = tl.sum(tl.where(first | second, parent[None, :], 0), 1)
        held = tl.load(read + origin[:, None] * columns + column[None, :], every, 0)
        error = (code - aim)[:, None] * tl.load(lower + n * columns + column, inside, 0)[None, :]
        held = tl.where((column < n)[None, :], held + error, tl.where((column == n)[None, :], code[:, None], held))
        tl.store(write + path[:, None] * columns + column[None, :], held, every)
        read, write = write, read
        tl.debug_barrier()  # other threads read next what this one has written
    tl.store(cost + row * paths + path, price, there)
    tl.store(parents + row * paths + path, parent, there)


@triton.jit
def round_half_even(x):
    """As `torch.round`, so that ties fall alike."""
    low = tl.floor(x)
    odd = low != 2 * tl.floor(low / 2)
    return tl.where((x - low > 0.5) | ((x - low == 0.5) & odd), low + 1, low)


@triton.jit
def _two_nearest(centre, high):
    """The integers of −high..high nearest and second nearest to `centre`."""
    near = tl.minimum(tl.maximum(round_half_even(centre), -high), high)
    step = tl.where(centre > near, 1.0, -1.0).to(centre.dtype)
    return near, tl.where(tl.abs(near + step) > high, near - step, near + step)


@triton.jit
def _kept(least, most, path):
    """Which option of which path is the k-th cheapest of all: two one-hot matrices (k, path) of K rows each."""
    earlier = path[None, :] < path[:, None]
    other = least[None, :] <= most[:, None]  # of two equal costs the nearer option goes first
    place = tl.sum(((least[None, :] < least[:, None]) | ((least[None, :] == least[:, None]) & earlier)).to(tl.int32), 1)
    place += tl.sum((most[None, :] < least[:, None]).to(tl.int32), 1)
    next_ = tl.sum(((most[None, :] < most[:, None]) | ((most[None, :] == most[:, None]) & earlier)).to(tl.int32), 1)
    next_ += tl.sum(other.to(tl.int32), 1)
    return place[None, :] == path[:, None], next_[None, :] == path[:, None]


@triton.jit
def _taken(kept, cost):
    return tl.min(tl.where(kept, cost[None, :], float("inf")), 1)


# repeat `count` times:   p ← argmin_n pivot_n;   row ← A_p − Σ_earlier R_ep R_e;   R_p ← row / √pivot_p
#                         pivot_n ← pivot_n − R_pn² for all n
@triton.jit
def _least_pivots(gram, pivot, taken, factor, inputs, count, WIDTH: tl.constexpr):
    group = tl.program_id(0).to(tl.int64)
    gram += group * inputs * inputs
    taken += group * count
    factor += group * count * inputs
    column = tl.arange(0, WIDTH)
    inside = column < inputs
    rest = tl.load(pivot + group * inputs + column, inside, float("inf"))
    for step in range(count):
        least, best = tl.min(rest, 0, return_indices=True)
        tl.store(taken + step, best)
        tl.store(gram + best * (inputs + 1), float("inf"))
        rest = tl.where(column == best, float("inf"), rest)
        if least > 0:
            row = tl.load(gram + best * inputs + column, inside, 0)
            for earlier in range(step):
                share = tl.load(factor + earlier * inputs + best)
                row -= share * tl.load(factor + earlier * inputs + column, inside, 0)
            row = tl.where(inside & (rest < float("inf")), row / tl.sqrt(least), 0)
            tl.store(factor + step * inputs + column, row, inside)
            rest -= row * row
            tl.debug_barrier()  # other threads read next what this one has written
