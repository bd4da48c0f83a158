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
from bitsplit.errors import InputError
from bitsplit.grid import Grid

ALGORITHMS = ("planes",)
SWEEPS = 100  # rounds of the published code
_BLOCK = 64  # columns between two updates of the whole residual


@dataclass(frozen=True)
class Solution:
    """Codes int8 (G, M, N), scale float32 (G, M), and objective float64 (G, M): −2α qᵀc + α² qᵀA q, energy left out."""

    codes: Tensor
    scale: Tensor
    objective: Tensor
    sweeps: int


def split(codes: Tensor, bits: int) -> Tensor:
    """Ternary planes (bits−1, ...) of integer codes: the binary digits of |q|, each with the sign of q."""
    magnitude, sign = codes.abs().to(torch.int16), codes.sign().to(torch.int8)
    return torch.stack([(magnitude >> m & 1).to(torch.int8) * sign for m in range(bits - 1)])


def stitch(planes: Tensor) -> Tensor:
    """Codes q = Σ_m 2^(m−1) q_m, int8 (Figure 1 of the paper: (1, −1, −1) → 1 − 2 − 4 = −5)."""
    weights = 2 ** torch.arange(len(planes), device=planes.device)
    return torch.tensordot(weights.float(), planes.float(), dims=1).to(torch.int8)


def objective(codes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
    """q-part of f, −2α qᵀc + α² qᵀA q, float64 (G, M). Add the energy e for the squared error itself."""
    q, scale = codes.double(), scale.double()
    linear = (q * cross.double()).sum(dim=-1)
    quadratic = ((q @ gram.double()) * q).sum(dim=-1)
    return scale.square() * quadratic - 2 * scale * linear


def optimal_scale(codes: Tensor, gram: Tensor, cross: Tensor, fallback: Tensor) -> Tensor:
    """Minimiser of f over the scale, α = qᵀc / qᵀA q (G, M); `fallback` where the codes reach no output at all."""
    q = codes.to(gram.dtype)
    linear = (q * cross).sum(dim=-1)
    quadratic = ((q @ gram) * q).sum(dim=-1)
    return torch.where(quadratic > 0, linear / quadratic.clamp_min(torch.finfo(gram.dtype).tiny), fallback)


def sweep(planes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
    """One round over all planes, the most significant first, and over all coordinates; the scale is held fixed.

    With d = (c − α A q)_n, the residual correlation of coordinate n, the free optimum moves q_n by d / (α A_nn); plane
    m can move it in steps of 2^(m−1) between its three values. No step raises f. Returns the new planes.
    """
    planes = planes.clone()
    residual = cross - scale.unsqueeze(-1) * (stitch(planes).to(gram.dtype) @ gram)
    if planes.device.type == "cpu":
        groups = (-1, *cross.shape[-2:])
        kernels.sweep(
            planes.view(len(planes), *groups),
            scale.reshape(groups[:2]).contiguous(),
            gram.reshape(-1, *gram.shape[-2:]).contiguous(),
            residual.view(groups),
        )
    else:
        sweep_in_blocks(planes, scale, gram, residual)
    return planes


def sweep_in_blocks(planes: Tensor, scale: Tensor, gram: Tensor, residual: Tensor) -> None:
    """`sweep` in plain torch operations, in place on planes and residual.

    The residual is kept up to date in blocks of columns: inside a block by rank-1 updates with the block's part of A,
    after it by one matrix product for all columns.
    """
    curvature = scale.unsqueeze(-1) * gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)  # α A_nn, (G, M, N)
    movable = curvature != 0
    inverse_curvature = torch.where(movable, 1 / torch.where(movable, curvature, 1), 0)
    inputs = gram.shape[-1]
    for m in reversed(range(len(planes))):
        for start in range(0, inputs, _BLOCK):
            columns = slice(start, min(start + _BLOCK, inputs))
            before = planes[m][..., columns].to(gram.dtype)
            after = _descend_block(
                before,
                residual[..., columns],
                inverse_curvature[..., columns] / 2**m,
                2**m * scale,
                gram[..., columns, columns],
            )
            planes[m][..., columns] = after.to(torch.int8)
            change = 2**m * scale.unsqueeze(-1) * (after - before)
            residual -= change @ gram[..., columns, :]


def _descend_block(plane: Tensor, residual: Tensor, step: Tensor, unit: Tensor, gram: Tensor) -> Tensor:
    """Coordinate descent on one plane inside one block of B columns.

    plane, residual and step (= 1 / (α A_nn 2^(m−1))) are (G, M, B), unit (= α 2^(m−1)) is (G, M), gram (G, B, B).
    Columns are laid out first, so that each coordinate's rows are contiguous.
    """
    # Copies, always: what is changed here must not reach the caller's tensors.
    layout = torch.contiguous_format
    plane, residual, step = (t.movedim(-1, 0).clone(memory_format=layout) for t in (plane, residual, step))
    gram_columns = gram.movedim(-1, 0).unsqueeze(-1)  # (B, G, B, 1): column n of every group
    gram_columns = gram_columns.movedim(-2, 1)  # (B, B, G, 1)
    for n in range(len(plane)):
        best = torch.addcmul(plane[n], residual[n], step[n]).round_().clamp_(-1, 1)
        change = (best - plane[n]) * unit
        plane[n] = best
        residual[n + 1 :].addcmul_(gram_columns[n, n + 1 :], change, value=-1)
    return plane.movedim(0, -1)


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
    """
    _check(gram, cross, bits, weight, algorithm)
    if weight is None:
        weight = cross.double() @ torch.linalg.pinv(gram.double(), hermitian=True)
    gram, cross, weight = gram.contiguous(), cross.contiguous(), weight.to(gram.dtype).contiguous()
    grid = Grid(bits)
    scale = grid.scale_by_alternation(weight)
    alive = gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-2) > 0
    planes = split(grid.quantize(weight, scale.unsqueeze(-1)) * alive, bits)
    done = 0
    while done < sweeps:
        done += 1
        scale = optimal_scale(stitch(planes), gram, cross, fallback=scale)
        previous, planes = planes, sweep(planes, scale, gram, cross)
        if torch.equal(previous, planes):
            break
    codes = stitch(planes)
    scale = optimal_scale(codes, gram, cross, fallback=scale)
    # The grid is symmetric: a row whose best scale is negative is the same row with its codes mirrored.
    codes, scale = torch.where(scale.unsqueeze(-1) < 0, -codes, codes), scale.abs()
    return Solution(codes, scale.float(), objective(codes, scale, gram, cross), done)


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
    if not all(given.isfinite().all() for given in (gram, cross, weight) if given is not None):
        raise InputError("gram, cross and weight must be finite; they hold NaN or infinity")
