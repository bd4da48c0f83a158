"""The uniform, zero-preserving quantization grid and the two ways to choose its scale without an output objective."""

import copy
from collections import deque
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

_MAX_ALTERNATIONS = 1000  # a guard only: fixed points come after tens of steps
_LONGEST_CYCLE = 5  # of the last digit


@dataclass(frozen=True)
class Grid:
    """Integers of `bits` bits; a value is `scale * code`.

    Signed grids are symmetric, -(2^(bits-1)-1) .. 2^(bits-1)-1; unsigned ones, for inputs that no negative value
    reaches, are 0 .. 2^bits-1. With a zero point `zero`, an unsigned grid is moved down by so many codes, -zero ..
    2^bits-1-zero: for inputs that reach further on one side, as after SiLU. A mid-rise grid, for weights, has 2^bits
    codes halfway between integers, -(2^(bits-1)-½) .. 2^(bits-1)-½, and none that is zero. Rounding is half to even.
    Where every channel has bits of its own, `bits` is a tensor of the scale's shape, in floating point; channels of 0
    bits, and signed ones of 1, have the code 0 alone.

    >>> grid = Grid(bits=3)
    >>> grid.low, grid.high
    (-3, 3)
    >>> values = torch.tensor([0.2, -0.5, 0.8, 2.0])
    >>> grid.quantize(values, grid.scale_by_max(values))
    tensor([ 0., -1.,  1.,  3.])
    >>> grid.quantize(values, scale=torch.tensor(0.25))
    tensor([ 1., -2.,  3.,  3.])
    >>> Grid(bits=2, midrise=True).quantize(values, scale=torch.tensor(0.4))
    tensor([ 0.5000, -1.5000,  1.5000,  1.5000])
    """

    bits: int | Tensor
    signed: bool = True
    zero: int = 0
    midrise: bool = False

    @property
    def least(self) -> float:
        """The smallest magnitude of a code."""
        return 0.5 if self.midrise else 0.0

    @property
    def high(self) -> float | Tensor:
        if self.midrise:
            return 2 ** (self.bits - 1) - self.least
        if isinstance(self.bits, Tensor):
            return (2 ** (self.bits - 1) - 1).clamp_min(0) if self.signed else 2**self.bits - 1
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1 - self.zero

    @property
    def low(self) -> float | Tensor:
        if isinstance(self.bits, Tensor):
            return -self.high if self.signed else torch.zeros_like(self.bits)
        return -self.high if self.signed else -self.zero

    def reshaped(self, *shape: int) -> "Grid":
        """The same grid with its channels' bits in another shape, to broadcast against other values."""
        return replace(self, bits=self.bits.reshape(shape)) if isinstance(self.bits, Tensor) else self

    def magnitude(self, values: Tensor) -> Tensor:
        """How far `values` reach into the grid: |x|, and nothing for negative values on an unsigned one.

        With a zero point, a negative value counts as the positive one that is as far from zero, in codes of the end.
        """
        if self.zero:
            return torch.maximum(values, values * (-self.high / self.zero))
        return values.abs() if self.signed else values.clamp_min(0)

    def quantize(self, values: Tensor, scale: Tensor) -> Tensor:
        """Codes of `values`, in the dtype of `values`; `scale` broadcasts against them."""
        codes = values / scale
        codes = codes.sub_(self.least).round_().add_(self.least) if self.midrise else codes.round_()
        return codes.clamp_(self.low, self.high)

    def scale_by_max(self, values: Tensor) -> Tensor:
        """Scale (...) of values (..., n) that puts the largest magnitude on the last code.

        TF-Lite's choice (Krishnamoorthi 2018). Rows with nothing to scale get 1.
        """
        if values.shape[-1] == 0:
            return values.new_ones(values.shape[:-1])
        scale = self.magnitude(values).amax(dim=-1) / self.high
        return torch.where(scale > 0, scale, torch.ones_like(scale))

    def scale_by_alternation(self, values: Tensor) -> Tensor:
        """Scale (...) of values (..., n): a local minimiser of the squared error, row by row.

        Alternates codes = quantize(x / scale) and scale = xᵀcodes / codesᵀcodes, from `scale_by_max`, until every
        row's scale is one of its last five (the alternation can cycle in the last digit). This is the paper's weight
        initialisation `fwa` and its activation calibration.
        """
        start = self.scale_by_max(values)
        rows = values.reshape(start.numel(), values.shape[-1])
        ends = [(rows, self.high), (-rows, self.zero)] if self.zero else [(self.magnitude(rows), self.high)]
        sides = [_Side(magnitudes, self.least, high) for magnitudes, high in ends]
        return _alternate(sides, start.flatten().double()).reshape(start.shape).to(start.dtype)


def _alternate(sides: "list[_Side]", scale: Tensor) -> Tensor:
    """The scales (rows,) at the step by which every row is in its cycle; those that are leave when they are half."""
    result, rows = torch.empty_like(scale), torch.arange(len(scale), device=scale.device)
    recent, left = deque([scale], maxlen=_LONGEST_CYCLE + 1), []
    for step in range(_MAX_ALTERNATIONS):
        products, power = (sum(sums) for sums in zip(*(side.sums(scale) for side in sides), strict=True))
        # Rows of zeros keep their scale; the least power of others is that of one code, ½ on a mid-rise grid.
        scale = torch.where(products > 0, products / power.clamp_min(0.25), scale)
        recent.append(scale)
        same = torch.stack([scale == earlier for earlier in reversed(recent)])[1:]
        if (cycling := same.any(dim=0)).all():
            break
        if 2 * cycling.sum() >= len(cycling):
            period = 1 + same.int().argmax(dim=0)
            left.append((step, rows[cycling], period[cycling], torch.stack([*reversed(recent)])[:, cycling]))
            rows, scale, sides = rows[~cycling], scale[~cycling], [side.of(~cycling) for side in sides]
            recent = deque([earlier[~cycling] for earlier in recent], maxlen=recent.maxlen)
    result[rows] = scale
    for when, which, period, backwards in left:  # on with each cycle to the last step
        result[which] = backwards.gather(0, ((when - step) % period)[None])[0]
    return result


class _Side:
    """Magnitudes (rows, n) of values on one side of zero, or on both where they count alike, and the codes there.

    |q| is `least` plus the number of boundaries (|q| − ½)·scale that |x| reaches, so on sorted values the sums of the
    alternation are read off at the boundaries, instead of rounding every value anew at each step.
    """

    def __init__(self, magnitudes: Tensor, least: float, high: float):
        self._least = least
        self._ordered = magnitudes.sort(dim=-1).values.double()
        self._above = nn.functional.pad(self._ordered.flip(-1).cumsum(dim=-1).flip(-1), (0, 1))  # Σ of x from i on
        self._codes = torch.arange(least + 1, high + 1, dtype=torch.float64, device=magnitudes.device)

    def of(self, rows: Tensor) -> "_Side":
        """The side of some rows."""
        side = copy.copy(self)
        side._ordered, side._above = self._ordered[rows], self._above[rows]
        return side

    def sums(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Σ|xq| and Σq² (rows,) at a scale (rows,)."""
        first = torch.searchsorted(self._ordered, (self._codes - 0.5) * scale.unsqueeze(-1))
        count = self._ordered.shape[-1]
        power = ((2 * self._codes - 1) * (count - first)).sum(dim=-1) + self._least**2 * count
        return self._above.gather(-1, first).sum(dim=-1) + self._least * self._above[:, 0], power
