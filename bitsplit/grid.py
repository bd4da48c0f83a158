"""The uniform, zero-preserving quantization grid and the two ways to choose its scale without an output objective."""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

_MAX_ALTERNATIONS = 1000  # a guard only: fixed points come after tens of steps


@dataclass(frozen=True)
class Grid:
    """Integers of `bits` bits; a value is `scale * code`.

    Signed grids are symmetric, -(2^(bits-1)-1) .. 2^(bits-1)-1; unsigned ones, for inputs that no negative value
    reaches, are 0 .. 2^bits-1. Rounding is half to even. Where every channel has bits of its own, `bits` is a tensor of
    the scale's shape, in floating point; channels of 0 bits, and signed ones of 1, have the code 0 alone.

    >>> grid = Grid(bits=3)
    >>> grid.low, grid.high
    (-3, 3)
    >>> values = torch.tensor([0.2, -0.5, 0.8, 2.0])
    >>> grid.quantize(values, grid.scale_by_max(values))
    tensor([ 0., -1.,  1.,  3.])
    >>> grid.quantize(values, scale=torch.tensor(0.25))
    tensor([ 1., -2.,  3.,  3.])
    """

    bits: int | Tensor
    signed: bool = True

    @property
    def high(self) -> int | Tensor:
        if isinstance(self.bits, Tensor):
            return (2 ** (self.bits - 1) - 1).clamp_min(0) if self.signed else 2**self.bits - 1
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    @property
    def low(self) -> int | Tensor:
        if isinstance(self.bits, Tensor):
            return -self.high if self.signed else torch.zeros_like(self.bits)
        return -self.high if self.signed else 0

    def reshaped(self, *shape: int) -> "Grid":
        """The same grid with its channels' bits in another shape, to broadcast against other values."""
        return Grid(self.bits.reshape(shape), self.signed) if isinstance(self.bits, Tensor) else self

    def magnitude(self, values: Tensor) -> Tensor:
        """How far `values` reach into the grid: |x|, and nothing for negative values on an unsigned one."""
        return values.abs() if self.signed else values.clamp_min(0)

    def quantize(self, values: Tensor, scale: Tensor) -> Tensor:
        """Codes of `values`, in the dtype of `values`; `scale` broadcasts against them."""
        return (values / scale).round_().clamp_(self.low, self.high)

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
        # |q| is the number of boundaries (k − ½)·scale that |x| reaches, so on sorted values both sums are read off at
        # the boundaries, instead of rounding every value anew at each step.
        ordered = self.magnitude(values).sort(dim=-1).values.double()
        length = ordered.shape[-1]
        above = torch.nn.functional.pad(ordered.flip(-1).cumsum(dim=-1).flip(-1), (0, 1))  # Σ of x from i on
        steps = torch.arange(1, self.high + 1, dtype=torch.float64, device=values.device)
        scale = start.double()
        recent = deque([scale], maxlen=5)
        for _ in range(_MAX_ALTERNATIONS):
            first = torch.searchsorted(ordered, (steps - 0.5) * scale.unsqueeze(-1))
            power = ((2 * steps - 1) * (length - first)).sum(dim=-1)
            fitted = above.gather(-1, first).sum(dim=-1) / power.clamp_min(1)
            scale = torch.where(power > 0, fitted, scale)
            if torch.stack([scale == earlier for earlier in recent]).any(dim=0).all():
                break
            recent.append(scale)
        return scale.to(start.dtype)
