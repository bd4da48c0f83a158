"""Bit-split and stitching (Wang et al., ICML 2020): integers and a scale that preserve a layer's *output*.

For one output channel with weights w, calibration patches X (N inputs × K patches) and output y = wᵀX:

    minimise over α, q:   f(α, q) = ‖y − α qᵀX‖² = e − 2α qᵀc + α² qᵀA q,      A = X Xᵀ,  c = X y,  e = ‖y‖².

The M-bit integers are split into M−1 ternary planes, q = Σ_m 2^(m−1) q_m with q_m ∈ {−1, 0, 1}^N, which are optimised
one after the other, coordinate by coordinate, and stitched back. Channels (rows) are independent given A, so every
function here works on all rows of all groups at once.

Shapes: G groups (any leading dimensions, or none), M output channels of a group, N inputs of a channel.
gram (G, N, N), cross (G, M, N), codes (G, M, N), scale (G, M), planes (bits−1, G, M, N), least significant plane first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitsplit import kernels
from bitsplit.descent import descend_once
from bitsplit.errors import InputError
from bitsplit.grid import Grid
from bitsplit.lattice import integers, lattice
from bitsplit.objective import objective, optimal_scale, panels

SWEEPS = 100  # rounds of the published code


@dataclass(frozen=True)
class Solution:
    """Codes int8 (G, M, N), scale float32 (G, M), and objective float64 (G, M): −2α qᵀc + α² qᵀA q, energy left out."""

    codes: Tensor
    scale: Tensor
    objective: Tensor
    sweeps: int


def split(codes: Tensor, bits: int) -> Tensor:
    """Ternary planes (bits−1, ...) of integer codes: the binary digits of |q|, each with the sign of q.

    >>> split(torch.tensor([5, -3]), bits=4).tolist()
    [[1, -1], [0, -1], [1, 0]]
    """
    magnitude, sign = codes.abs().to(torch.int16), codes.sign().to(torch.int8)
    return torch.stack([(magnitude >> m & 1).to(torch.int8) * sign for m in range(bits - 1)])


def stitch(planes: Tensor) -> Tensor:
    """Codes q = Σ_m 2^(m−1) q_m, int8 (Figure 1 of the paper: (1, −1, −1) → 1 − 2 − 4 = −5).

    >>> stitch(torch.tensor([[1], [-1], [-1]]))
    tensor([-5], dtype=torch.int8)
    """
    weights = 2 ** torch.arange(len(planes), device=planes.device)
    return torch.tensordot(weights.float(), planes.float(), dims=1).to(torch.int8)


def solve(
    gram: Tensor,
    cross: Tensor,
    bits: int,
    weight: Tensor | None = None,
    algorithm: str = "planes",
    sweeps: int = SWEEPS,
) -> Solution:
    """Integers and scale that minimise f = e − 2α qᵀc + α² qᵀA q for every row.

    gram (G, N, N) and cross (G, M, N), G optional, in float32 or float64, which is also the dtype of the computation;
    bits 2..8. The start is the fixed point of `Grid.scale_by_alternation` on `weight` (G, M, N), or without it on the
    least-squares solution of weight · gram = cross. The published code follows it with bit-split in weight space
    (A = I); that step is left out because it cannot move: at the fixed point every code is the nearest one to w/α and α
    is optimal for them. `sweeps` bounds the rounds; rounds end early when no plane changes any more.

    Inputs that never carry a signal (A_nn = 0) get code 0; rows whose codes reach no output keep the start's scale.

    Raises InputError for bits outside 2..8, an unknown algorithm, shapes that do not fit, or values not finite.

    >>> gram = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> solution = solve(gram, torch.tensor([[0.7, -0.2]]) @ gram, bits=4)
    >>> solution.codes
    tensor([[ 7, -2]], dtype=torch.int8)
    >>> solution.scale
    tensor([0.1000])
    """
    _check(gram, cross, bits, weight, algorithm)
    if weight is None:
        weight = cross.double() @ torch.linalg.pinv(gram.double(), hermitian=True)
    shape = cross.shape
    gram = gram.reshape(-1, *gram.shape[-2:]).contiguous()
    cross, weight = (given.to(gram.dtype).reshape(-1, *shape[-2:]).contiguous() for given in (cross, weight))
    solved = [_solve_rows(gram, *rows, bits, algorithm, sweeps) for rows in panels(cross, weight)]
    codes, scale, value = (torch.cat(parts, dim=1) for parts in zip(*(rows[:3] for rows in solved), strict=True))
    done = max(rows[3] for rows in solved)
    return Solution(codes.reshape(shape), scale.reshape(shape[:-1]), value.reshape(shape[:-1]), done)


def _solve_rows(
    gram: Tensor, cross: Tensor, weight: Tensor, bits: int, algorithm: str, sweeps: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    codes, scale, done = ALGORITHMS[algorithm](gram, cross.contiguous(), weight.contiguous(), bits, sweeps)
    scale = optimal_scale(codes, gram, cross, fallback=scale)
    # The grid is symmetric: a row whose best scale is negative is the same row with its codes mirrored.
    codes, scale = torch.where(scale.unsqueeze(-1) < 0, -codes, codes), scale.abs()
    return codes.to(torch.int8), scale.float(), objective(codes, scale, gram, cross), done


def planes(gram: Tensor, cross: Tensor, weight: Tensor, bits: int, rounds: int) -> tuple[Tensor, Tensor, int]:
    """The paper's algorithm: the best scale, then a round over all planes, until no plane changes any more.

    Returns codes, scale, and the rounds it took.
    """
    grid = Grid(bits)
    scale = grid.scale_by_alternation(weight)
    alive = gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-2) > 0
    codes = grid.quantize(weight, scale.unsqueeze(-1)) * alive
    parts, reached = split(codes, bits), codes @ gram
    scale = optimal_scale(codes, gram, cross, scale, reached)
    residual = cross - scale.unsqueeze(-1) * reached
    on_cpu = gram.device.type == "cpu"
    done = (kernels.descend_planes if on_cpu else descend_planes)(parts, scale, gram, cross, residual, rounds)
    return stitch(parts), scale, done


def descend_planes(planes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor, residual: Tensor, rounds: int) -> int:
    """Rounds over all planes, the most significant first, and over all coordinates, in plain torch operations.

    The scale is held fixed in a round and optimised between two. With d = (c − α A q)_n, the residual correlation of
    coordinate n, the free optimum moves q_n by d / (α A_nn); plane m can move it in steps of 2^(m−1) between its three
    values. No step raises f. In place on planes, scale and residual, d of all coordinates; returns the rounds taken.
    """
    for done in range(rounds):
        if done:
            codes = stitch(planes).to(gram.dtype)
            reached = codes @ gram
            scale.copy_(optimal_scale(codes, gram, cross, scale, reached))
            residual.copy_(cross - scale.unsqueeze(-1) * reached)
        before = planes.clone()
        for m in reversed(range(len(planes))):
            descend_once(planes[m], 2**m * scale, 1, gram, residual)
        if torch.equal(before, planes):
            return done + 1
    return rounds


ALGORITHMS = {"planes": planes, "integers": integers, "lattice": lattice}


def _check(gram: Tensor, cross: Tensor, bits: int, weight: Tensor | None, algorithm: str) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise InputError(f"bits must be an integer from 2 to 8, got {bits!r}")
    if algorithm not in ALGORITHMS:
        raise InputError(f"algorithm must be one of {', '.join(ALGORITHMS)}; got {algorithm!r}")
    if gram.dtype not in (torch.float32, torch.float64) or cross.dtype != gram.dtype:
        raise InputError(f"gram and cross must both be float32 or float64, got {gram.dtype} and {cross.dtype}")
    if min(gram.dim(), cross.dim()) < 2:
        raise InputError(f"gram and cross must be matrices, got shapes {tuple(gram.shape)} and {tuple(cross.shape)}")
    if gram.shape[-1] != gram.shape[-2] or cross.shape[-1] != gram.shape[-1] or gram.shape[:-2] != cross.shape[:-2]:
        raise InputError(
            f"gram (..., N, N) and cross (..., M, N) do not fit: {tuple(gram.shape)}, {tuple(cross.shape)}"
        )
    if weight is not None and weight.shape != cross.shape:
        raise InputError(f"weight must have the shape of cross, {tuple(cross.shape)}; got {tuple(weight.shape)}")
    # The extremes are NaN where any value is, and need no temporary the size of a Gram matrix.
    extremes = [torch.stack(given.aminmax()) for given in (gram, cross, weight) if given is not None and given.numel()]
    if not all(pair.isfinite().all() for pair in extremes):
        raise InputError("gram, cross and weight must be finite; they hold NaN or infinity")
