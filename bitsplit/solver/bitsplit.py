"""Bit-split and stitching (Wang et al., ICML 2020, section 3): integers and a scale that preserve a layer's *output*.

For one output channel with weights w, calibration patches X (N inputs × K patches) and output y = wᵀX:

    minimise over α, q:   f(α, q) = ‖y − α qᵀX‖² = e − 2α qᵀc + α² qᵀA q,      A = X Xᵀ,  c = X y,  e = ‖y‖².

The M-bit integers are split into M−1 ternary planes, q = Σ_m 2^(m−1) q_m with q_m ∈ {−1, 0, 1}^N, which are optimised
one after the other, coordinate by coordinate, and stitched back. Channels (rows) are independent given A, so every
function here works on all rows of all groups at once.

Shapes: G groups (any leading dimensions, or none), M output channels of a group, N inputs of a channel.
gram (G, N, N), cross (G, M, N), codes (G, M, N), scale (G, M), planes (bits−1, G, M, N), least significant plane first.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from bitsplit.errors import InputError
from bitsplit.grid import Grid
from bitsplit.settings import check_bits
from bitsplit.solver import compiled
from bitsplit.solver.gptq import gptq
from bitsplit.solver.integers import integers
from bitsplit.solver.lattice import lattice
from bitsplit.solver.objective import objective, optimal_scale, panels, rest_dead_inputs
from bitsplit.solver.threads import check_process

ROUNDS = 100  # of the published code


def split(codes: Tensor, bits: int) -> Tensor:
    """Ternary planes (bits−1, ...) of integer codes: the binary digits of |q|, each with the sign of q.

    >>> split(torch.tensor([5, -3]), bits=4).tolist()
    [[1, -1], [0, -1], [1, 0]]
    """
    magnitude, sign = codes.abs().to(torch.int16), codes.sign().to(torch.int8)
    return torch.stack([(magnitude >> m & 1).to(torch.int8) * sign for m in range(bits - 1)])


def bit_split(gram: Tensor, cross: Tensor, weight: Tensor, grid: Grid, rounds: int) -> tuple[Tensor, Tensor, int]:
    """The paper's algorithm. Returns codes int8 (G, M, N), scale (G, M), and the rounds it took, at most `rounds`.

    The scale is held fixed in a round and optimised between two. The m-th bit step, `compiled.descend_plane`, moves one
    coordinate of plane q_m after the other to the best of its three values given all the rest. With the residual
    d = c − αAq, the free optimum moves q_n by d_n / (α A_nn), and plane m moves it in steps of 2^(m−1):

        for n = 1 … N:   q_mn ← clip(round(q_mn + d_n / (2^(m−1) α A_nn)), −1, 1),   d ← d − 2^(m−1) α Δq_mn A_n

    No step raises f. A row none of whose planes changed in a round is done.
    """
    scale = grid.scale_by_alternation(weight)
    codes = rest_dead_inputs(grid.quantize(weight, scale.unsqueeze(-1)), gram, grid)
    planes, reached = split(codes, grid.bits), codes @ gram
    scale = optimal_scale(codes, gram, cross, scale, reached)
    residual = cross - scale.unsqueeze(-1) * reached
    active = torch.ones_like(scale, dtype=torch.bool)
    taken = 0
    while taken < rounds and active.any():
        if taken:
            compiled.rescale(stitch(planes).to(gram.dtype), scale, cross, residual, active)
        before = planes.clone()
        for m in reversed(range(grid.bits - 1)):  # the most significant plane first
            compiled.descend_plane(planes[m], 2**m * scale * active, gram, residual)
        active = (planes != before).any(dim=-1).any(dim=0)
        taken += 1
    return stitch(planes), scale, taken


def stitch(planes: Tensor) -> Tensor:
    """Codes q = Σ_m 2^(m−1) q_m, int8 (Figure 1 of the paper: (1, −1, −1) → 1 − 2 − 4 = −5).

    >>> stitch(torch.tensor([[1], [-1], [-1]]))
    tensor([-5], dtype=torch.int8)
    """
    weights = 2 ** torch.arange(len(planes), device=planes.device)
    return torch.tensordot(weights.float(), planes.float(), dims=1).to(torch.int8)


@dataclass(frozen=True)
class Solution:
    """Codes int8 (G, M, N), scale float32 (G, M), objective float64 (G, M): −2α qᵀc + α² qᵀA q, energy left out.

    The weights αq are scale · codes, or on a mid-rise grid scale · codes + offset, float32 (G, M). rounds: of
    coordinate descent, as many as were really run until the last row was done (0 for "gptq"). gram, cross: those given.
    """

    codes: Tensor
    scale: Tensor
    rounds: int
    offset: Tensor | None
    gram: Tensor = field(repr=False)
    cross: Tensor = field(repr=False)

    @cached_property
    def objective(self) -> Tensor:
        codes = self.codes if self.offset is None else self.codes + 0.5
        return objective(codes, self.scale, self.gram, self.cross)


ALGORITHMS = {"planes": bit_split, "integers": integers, "gptq": gptq, "lattice": lattice}


@torch.no_grad()
def solve(
    gram: Tensor,
    cross: Tensor,
    bits: int,
    weight: Tensor | None = None,
    algorithm: str = "planes",
    rounds: int = ROUNDS,
    midrise: bool = False,
) -> Solution:
    """Integers and scale that minimise f = e − 2α qᵀc + α² qᵀA q for every row.

    gram (G, N, N) and cross (G, M, N), G optional, in float32 or float64, which is also the dtype of the computation;
    on any device, to which the solution goes back from the CPU; bits 2..8. algorithm: "planes" is the paper's,
    "integers" coordinate descent on whole integers, "gptq" GPTQ's error feedback, "lattice" the most accurate. The
    start is the fixed point of `Grid.scale_by_alternation` on `weight` (G, M, N), or without it on the least-squares
    solution of weight · gram = cross. The published code follows it with bit-split in weight space (A = I); that step
    is left out because it cannot move: at the fixed point every code is the nearest one to w/α and α is optimal for
    them. `rounds` bounds the rounds of coordinate descent. midrise: q has the 2^bits half integers of the mid-rise
    `Grid` for its values, where the paper's has 2^bits − 1; the codes are then q − ½, and the offset is α/2.

    Inputs that never carry a signal (A_nn = 0) get q = 0, or ½; rows whose codes reach no output keep the start's
    scale.

    Raises InputError for bits outside 2..8, an unknown algorithm, a mid-rise grid for the planes, shapes that do not
    fit, or values not finite.

    >>> gram = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> solution = solve(gram, torch.tensor([[0.7, -0.2]]) @ gram, bits=4)
    >>> solution.codes
    tensor([[ 7, -2]], dtype=torch.int8)
    >>> solution.scale
    tensor([0.1000])
    """
    _check(gram, cross, bits, weight, algorithm, midrise)
    check_process()
    grid = Grid(bits, midrise=midrise)
    if weight is None:
        weight = cross.double() @ torch.linalg.pinv(gram.double(), hermitian=True)
    shape, device = cross.shape, gram.device
    a = gram.cpu().reshape(-1, *gram.shape[-2:]).contiguous()
    rows = (part.to(a).reshape(-1, *shape[-2:]).contiguous() for part in (cross, weight))
    parts, taken = [], 0
    for c, w in panels(*rows):
        codes, scale, part_rounds = ALGORITHMS[algorithm](a, c.contiguous(), w.contiguous(), grid, rounds)
        if midrise:  # without a code for zero, a scale of zero is what makes a row of zeros
            scale = scale * w.any(dim=-1)
        scale = optimal_scale(codes, a, c, fallback=scale)
        # The grid is symmetric: a row whose best scale is negative is the same row with its codes mirrored.
        codes, scale = torch.where(scale.unsqueeze(-1) < 0, -codes, codes), scale.abs()
        parts.append(((codes - grid.least).to(torch.int8), scale.float()))
        taken = max(taken, part_rounds)
    codes, scale = (torch.cat(part, dim=1).to(device) for part in zip(*parts, strict=True))
    scale = scale.reshape(shape[:-1])
    return Solution(codes.reshape(shape), scale, taken, scale * grid.least if midrise else None, gram, cross.to(gram))


def _check(gram: Tensor, cross: Tensor, bits: int, weight: Tensor | None, algorithm: str, midrise: bool) -> None:
    check_bits("bits", bits, floating_point=False)
    if algorithm not in ALGORITHMS:
        raise InputError(f"algorithm must be one of {', '.join(ALGORITHMS)}; got {algorithm!r}")
    if midrise and algorithm == "planes":
        raise InputError("planes make integers, no half ones: midrise needs another algorithm, lattice say")
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
    values = [tensor for tensor in (gram, cross, weight) if tensor is not None and tensor.numel()]
    if not all(torch.stack(tensor.aminmax()).isfinite().all() for tensor in values):
        raise InputError("gram, cross and weight must be finite; they hold NaN or infinity")
