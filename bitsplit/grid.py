"""The uniform, zero-preserving quantization grid and the two ways to choose its scale without an output objective."""

from dataclasses import dataclass, replace

import numba
import numpy as np
import torch
from torch import Tensor

_MOST_ALTERNATIONS = 1000  # a guard only: fixed points come after tens of steps
_LONGEST_CYCLE = 5  # of the last digit
_STARTS = 24  # between the scales that the two sides of a zero point ask for


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

        Alternates codes = quantize(x / scale) and scale = xᵀcodes / codesᵀcodes, from `scale_by_max`, until a row's
        scale is one of its last five (the alternation can cycle in the last digit). This is the paper's weight
        initialisation `fwa` and its activation calibration. With a zero point each side asks for a scale of its own,
        and the alternation hardly leaves the one it starts from: that is then the best of some between the two. On the
        CPU, wherever the values are.
        """
        scale = self.scale_by_max(values)
        rows = values.detach().reshape(scale.numel(), values.shape[-1]).cpu()
        sides = [(rows, self.high), (-rows, self.zero)] if self.zero else [(self.magnitude(rows), self.high)]
        magnitudes = torch.stack([side for side, _ in sides]).numpy()
        magnitudes.sort(axis=-1)
        highs, found = np.array([high for _, high in sides], np.float64), scale.flatten().double().cpu().numpy()
        shares = np.empty((len(found), 0))
        if self.zero and magnitudes.size:
            own = magnitudes[:, :, -1] / highs[:, None]
            least = np.where(own.min(axis=0) > 0, own.min(axis=0), own.max(axis=0)) / found
            shares = least[:, None] ** np.linspace(0, 1, _STARTS)
        _alternate(magnitudes, highs, self.least, found[:, None] * shares, found)
        return torch.from_numpy(found).reshape(scale.shape).to(scale)


# for every row:   α ← the start of least squared error;   repeat:   α ← Σ|x||q| / Σq²   until α is one of its last five
@numba.njit(parallel=True, cache=True)
def _alternate(ordered, highs, least, starts, scale):
    """In place on scale (rows,), from the best of starts (rows, some), or from `scale` itself where there are none.
    ordered (sides, rows, n): ascending magnitudes of the values on a side of zero, or on both where they count alike;
    highs (sides,): its greatest code. There are two sides only where `least` is 0."""
    sides, rows, count = ordered.shape
    for row in numba.prange(rows):
        above = np.zeros((sides, count + 1))
        for side in range(sides):
            for i in range(count - 1, -1, -1):
                above[side, i] = above[side, i + 1] + ordered[side, row, i]
        explained = 0.0  # of Σx², by the best scale for a start's codes
        for start in starts[row]:
            products, power = _code_sums(ordered[:, row], above, highs, least, start)
            if products * products > explained * power:
                explained, scale[row] = products * products / power, start
        recent = np.zeros(_LONGEST_CYCLE)
        for step in range(_MOST_ALTERNATIONS):
            recent[step % _LONGEST_CYCLE] = scale[row]
            products, power = _code_sums(ordered[:, row], above, highs, least, scale[row])
            if products > 0:  # a row of zeros keeps its scale
                scale[row] = products / power
            if (recent == scale[row]).any():
                break


# |q| is `least` plus the number of boundaries (k − ½)·α, k = least + 1 … high, that |x| reaches. So on sorted values,
# with above_i = Σ_j≥i |x_j| and i_k the first |x| that reaches boundary k, nothing is rounded anew at a step:
#     Σ|x||q| = least · above_0 + Σ_k above_i_k       Σq² = least² · n + Σ_k (2k − 1)(n − i_k)
@numba.njit
def _code_sums(ordered, above, highs, least, scale):
    """Σ|x||q| and Σq² of one row, ordered (sides, n)."""
    sides, count = ordered.shape
    products, power = least * above[:, 0].sum(), least**2 * count
    for side in range(sides):
        for k in np.arange(least + 1, highs[side] + 1):
            first = np.searchsorted(ordered[side], (k - 0.5) * scale)
            products += above[side, first]
            power += (2 * k - 1) * (count - first)
    return products, power
