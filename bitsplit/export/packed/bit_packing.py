"""Signed integers at their true bit-width in bytes: three bits take three bits, whatever the shape."""

import math

import numpy as np

_AT_A_TIME = 2**20  # values, a multiple of 8: so many at once need eight times their memory


def row_widths(codes: np.ndarray, bits: int) -> np.ndarray:
    """The bits of every row (R,) of int8 codes (R, N): `bits`, or where one row needs more (a method that allots bits
    by channel) what each needs: 0 where all its codes are 0."""
    greatest = (codes ^ (codes >> 7)).max(axis=1, initial=0)  # v, or −1 − v of a negative one
    if greatest.max(initial=0) < 2 ** (bits - 1):
        return np.full(len(codes), bits, dtype=np.uint8)
    return np.where(codes.any(axis=1), np.ceil(np.log2(greatest + 1.0)) + 1, 0).astype(np.uint8)


def packed_size(widths: np.ndarray, columns: int) -> int:
    """Bytes of `pack_rows`."""
    return sum(-(-int((widths == width).sum()) * columns * int(width) // 8) for width in np.unique(widths))


def pack_rows(codes: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Bytes (uint8) of int8 codes (R, N) whose rows have `widths` (R,) bits, 0 to 8: two's complement, least bit first.

    Rows of the same width follow each other without any gap, the narrowest first; each width begins a byte.

    >>> pack_rows(np.array([[1, -1, 3, 0, 2, -3, 0, 1]], dtype=np.int8), np.array([3])).tolist()
    [249, 160, 34]
    """
    parts = [_pack(codes[widths == width].reshape(-1), width) for width in np.unique(widths)]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint8)


def unpack_rows(packed: np.ndarray, widths: np.ndarray, columns: int) -> np.ndarray:
    """The inverse of `pack_rows`: int8 codes (R, `columns`). ValueError where there are more bytes or fewer."""
    if len(packed) != packed_size(widths, columns):
        raise ValueError(f"{len(packed)} bytes of codes instead of {packed_size(widths, columns)}")
    codes, start = np.empty((len(widths), columns), dtype=np.int8), 0
    for width in np.unique(widths):
        rows = widths == width
        shape = int(rows.sum()), columns
        end = start + -(-math.prod(shape) * int(width) // 8)
        codes[rows] = _unpack(packed[start:end], int(width), math.prod(shape)).reshape(shape)
        start = end
    return codes


def _pack(values: np.ndarray, width: int) -> np.ndarray:
    parts = []
    for start in range(0, len(values) if width else 0, _AT_A_TIME):
        some = values[start : start + _AT_A_TIME].view(np.uint8)
        bits = np.unpackbits(some[:, None], axis=1, count=int(width), bitorder="little")
        parts.append(np.packbits(bits, bitorder="little"))
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint8)


def _unpack(packed: np.ndarray, width: int, count: int) -> np.ndarray:
    values = np.zeros(count, dtype=np.int8)
    for start in range(0, count if width else 0, _AT_A_TIME):
        some = values[start : start + _AT_A_TIME]
        part = packed[start * width // 8 :]
        bits = np.unpackbits(part, count=len(some) * width, bitorder="little").reshape(-1, width)
        unsigned = np.packbits(bits, axis=1, bitorder="little")[:, 0]
        # The sign bit of so many bits to the sign bit of eight, and back with its sign.
        some[:] = (unsigned << (8 - width)).view(np.int8) >> (8 - width)
    return values
