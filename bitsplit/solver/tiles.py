"""What the compiled loops have in common: tiles of ROWS rows of one group, which threads share out, and rounding."""

import numba
import numpy as np
from torch import Tensor

ROWS = 16  # rows that share one read of a row of the Gram matrix while it is in cache


def like(tensor: Tensor, number: float) -> np.floating:
    """`number` in the tensor's dtype: an integer among float32 would turn the loops into float64."""
    return tensor.numpy().dtype.type(number)


@numba.njit
def count_tiles(groups, rows):
    """The tiles of `groups` groups of `rows` rows."""
    return groups * ((rows + ROWS - 1) // ROWS)


@numba.njit
def tile_rows(tile, rows):
    """(group, first row, row behind the last) of one tile."""
    tiles = (rows + ROWS - 1) // ROWS
    first = tile % tiles * ROWS
    return tile // tiles, first, min(first + ROWS, rows)


@numba.njit(forceinline=True)
def nearest_code(value, high):
    """The code nearest to `value` of those that lie at whole steps from `high`."""
    least = high - np.floor(high)
    return np.rint(value - least) + least


@numba.njit
def keep_rows(active, count, flags):
    """Moves those of the first `count` active rows whose flag is set to the front; returns how many they are."""
    front = 0
    for i in range(count):
        if flags[i]:
            active[front] = active[i]
            front += 1
    return front
