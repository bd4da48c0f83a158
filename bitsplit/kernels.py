"""The compiled inner loop of `solver.sweep` for CPUs; `solver.sweep_in_blocks` is its oracle and serves GPUs."""

import numba
import numpy as np
from torch import Tensor

_ROWS = 16  # rows that share one read of a row of the Gram matrix while it is in cache


def sweep(planes: Tensor, scale: Tensor, gram: Tensor, residual: Tensor) -> None:
    """One round of coordinate descent over all planes, in place on planes (P, G, M, N) and residual (G, M, N).

    scale (G, M) and gram (G, N, N) in the residual's dtype, all contiguous and on the CPU. An update costs N
    operations, and only where a coordinate moves: late rounds, in which few do, cost next to nothing.
    """
    _sweep(planes.numpy(), scale.numpy(), gram.numpy(), residual.numpy())


@numba.njit(parallel=True, cache=True)
def _sweep(planes, scale, gram, residual):
    groups, rows, inputs = residual.shape
    tiles = (rows + _ROWS - 1) // _ROWS
    for tile in numba.prange(groups * tiles):
        g = tile // tiles
        first = tile % tiles * _ROWS
        last = min(first + _ROWS, rows)
        for m in range(len(planes) - 1, -1, -1):
            step = 2**m
            for n in range(inputs):
                diagonal = gram[g, n, n]
                if diagonal == 0:
                    continue
                for row in range(first, last):
                    unit = scale[g, row] * step
                    if unit == 0:
                        continue
                    before = planes[m, g, row, n]
                    best = np.rint(before + residual[g, row, n] / (unit * diagonal))
                    after = np.int8(min(max(best, -1), 1))
                    if after != before:
                        planes[m, g, row, n] = after
                        change = unit * (after - before)
                        for k in range(inputs):
                            residual[g, row, k] -= change * gram[g, n, k]
