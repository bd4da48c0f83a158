"""f(α, q) = ‖y − α qᵀX‖² as a function of its statistics: what every algorithm of the solver minimises."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bitsplit.grid import Grid

# VGG-16 at 224×224 has a layer of 4,096 × 25,088 weights: 0.8 GB in float64, and its Gram matrix 5 GB.
_COLUMNS = 4096  # of a Gram matrix in float64 at a time
_VALUES = 2**24  # of rows at a time
LEAST_GAIN = 1e-6  # of a step's own α² A_nn: less is rounding


def panels(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows of matrices (G, M, N), so many at a time that their temporaries stay small beside a Gram matrix."""
    groups, _, inputs = matrices[0].shape
    rows = max(1, _VALUES // max(1, groups * inputs))
    return zip(*(matrix.split(rows, dim=1) for matrix in matrices), strict=True)


def objective(codes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
    """q-part of f, −2α qᵀc + α² qᵀA q, float64 (G, M). Add the energy e for the squared error itself."""
    q, scale = codes.double(), scale.double()
    linear = (q * cross.double()).sum(dim=-1)
    quadratic = sum(
        ((q @ columns.double()) * part).sum(dim=-1)
        for columns, part in zip(gram.split(_COLUMNS, dim=-1), q.split(_COLUMNS, dim=-1), strict=True)
    )
    return scale.square() * quadratic - 2 * scale * linear


def optimal_scale(codes: Tensor, gram: Tensor, cross: Tensor, fallback: Tensor, reached: Tensor | None = None):
    """Minimiser of f over the scale, α = qᵀc / qᵀA q (G, M); `fallback` where the codes reach no output at all.

    `reached` is qᵀA (G, M, N) where it is known already.
    """
    q = codes.to(gram.dtype)
    linear = (q * cross).sum(dim=-1)
    quadratic = ((q @ gram if reached is None else reached) * q).sum(dim=-1)
    return torch.where(quadratic > 0, linear / quadratic.clamp_min(torch.finfo(gram.dtype).tiny), fallback)


def living(gram: Tensor) -> Tensor:
    """Which inputs carry a signal at all, A_nn > 0, (G, 1, N); the codes of the others are the grid's least."""
    return gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-2) > 0


def rest_dead_inputs(codes: Tensor, gram: Tensor, grid: Grid) -> Tensor:
    """Codes (G, M, N), the grid's least where an input carries no signal."""
    return torch.where(living(gram), codes, grid.least)


def strongest_coupling(gram: Tensor) -> Tensor:
    """max_m≠n |A_nm| for every coordinate n, (G, N)."""
    coupling = gram.abs()
    coupling.diagonal(dim1=-2, dim2=-1).zero_()
    return coupling.amax(dim=-1)
