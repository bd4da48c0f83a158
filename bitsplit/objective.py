"""f(α, q) = ‖y − α qᵀX‖² as a function of its statistics: what every algorithm of the solver minimises."""

import torch
from torch import Tensor


def objective(codes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
    """q-part of f, −2α qᵀc + α² qᵀA q, float64 (G, M). Add the energy e for the squared error itself."""
    q, scale = codes.double(), scale.double()
    linear = (q * cross.double()).sum(dim=-1)
    quadratic = ((q @ gram.double()) * q).sum(dim=-1)
    return scale.square() * quadratic - 2 * scale * linear


def optimal_scale(codes: Tensor, gram: Tensor, cross: Tensor, fallback: Tensor, reached: Tensor | None = None):
    """Minimiser of f over the scale, α = qᵀc / qᵀA q (G, M); `fallback` where the codes reach no output at all.

    `reached` is qᵀA (G, M, N) where it is known already.
    """
    q = codes.to(gram.dtype)
    linear = (q * cross).sum(dim=-1)
    quadratic = ((q @ gram if reached is None else reached) * q).sum(dim=-1)
    return torch.where(quadratic > 0, linear / quadratic.clamp_min(torch.finfo(gram.dtype).tiny), fallback)
