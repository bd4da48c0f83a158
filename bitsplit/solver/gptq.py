"""GPTQ's error feedback (Frantar et al., "GPTQ", ICLR 2023) on the Gram matrix, as a nearest-plane search.

GPTQ rounds one column after the other and spreads each rounding error over the columns not yet rounded, by the Cholesky
factor of A⁻¹. That is Babai's nearest plane in the lattice of A (Babai 1986; Chen et al., "The geometry of LLM
quantization", 2025): with A = RᵀR (R upper triangular, D its diagonal, U = D⁻¹R) and t = w / α, from the last column to
the first,

    q_n ← clip(round(t_n − Σ_{j>n} U_nj (q_j − t_j))).

`lattice` does the same with many paths and several scales. Shapes as in `bitsplit`.
"""

import torch
from torch import Tensor

from bitsplit.grid import Grid
from bitsplit.solver import compiled
from bitsplit.solver.objective import living, rest_dead_inputs

DAMPING = 0.01  # of A's mean diagonal, added to it before it is factored (GPTQ's value)
BLOCK = 64  # columns between two updates of all the columns before them
_SCRATCH = 2**25  # numbers in the largest temporary array


def gptq(gram: Tensor, cross: Tensor, weight: Tensor, grid: Grid, rounds: int) -> tuple[Tensor, Tensor, int]:
    """One path at one scale, the alternation's, with the columns from first to last as GPTQ takes them.

    Returns codes (G, M, N) in the dtype of `gram`, the scale (G, M), and 0: there are no rounds, whatever their bound.
    """
    scale = grid.scale_by_alternation(weight)
    gram, cross, weight = gram.flip(-1, -2), cross.flip(-1), weight.flip(-1)  # the search starts at the last column
    lower, pivots, target, _ = factored(gram, cross, weight * living(gram))
    codes = k_best(target / scale.unsqueeze(-1), lower, pivots, grid.high, paths=1)
    return rest_dead_inputs(codes, gram, grid).flip(-1), scale, 0


def factored(gram: Tensor, cross: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Uᵀ (G, N, N) and D² (G, N) of the damped Gram matrix; the least-squares weights w, and c − wA (G, M, N)."""
    damping = mean_damping(gram)
    while True:
        lower, failed = torch.linalg.cholesky_ex(damped(gram, damping))
        if not failed.any():
            break
        damping = torch.where(failed > 0, 10 * damping, damping)  # rounding has cost A its positive eigenvalues
    weight = weight + torch.cholesky_solve((cross - weight @ gram).mT, lower).mT
    diagonal = lower.diagonal(dim1=-2, dim2=-1).clone()
    return lower / diagonal.unsqueeze(-2), diagonal.square(), weight, cross - weight @ gram


def mean_damping(gram: Tensor) -> Tensor:
    """`DAMPING` of the mean diagonal of each matrix, (G,)."""
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    return DAMPING * torch.where(mean > 0, mean, 1)


def damped(gram: Tensor, damping: Tensor) -> Tensor:
    """A copy of gram (G, N, N) with `damping` (G,) added to its diagonal."""
    matrix = gram.clone()
    matrix.diagonal(dim1=-2, dim2=-1).add_(damping.unsqueeze(-1))
    return matrix


def k_best(target: Tensor, lower: Tensor, pivots: Tensor, high: float, paths: int) -> Tensor:
    """The best codes (G, M, N) that a search with K = `paths` paths a row finds for targets t (G, M, N).

    lower (G, N, N) = Uᵀ and pivots (G, N) = diag(D²). One path is Babai's nearest plane.
    """
    rows = max(BLOCK, _SCRATCH // (paths * target.shape[-1]))
    parts = target.split(rows, dim=-2)
    return torch.cat([_k_best(part, lower, pivots, high, paths) for part in parts], dim=-2)


def _k_best(target: Tensor, lower: Tensor, pivots: Tensor, high: float, paths: int) -> Tensor:
    groups, rows, inputs = target.shape
    sums = target.new_zeros(groups, rows * paths, inputs)  # Σ_j U_nj (q_j − t_j) over the columns that are chosen
    cost, alive, history = target.new_zeros(groups, rows, paths), 1, []
    for start in reversed(range(0, inputs, BLOCK)):
        block = slice(start, min(start + BLOCK, inputs))
        aim = target[..., block].contiguous()
        known = sums[..., block].reshape(groups, rows, paths, -1).contiguous()
        codes, parents = compiled.extend_paths(
            aim, known, lower[:, block, block].contiguous(), pivots[:, block].contiguous(), cost, alive, high
        )
        history.append((codes, parents))
        alive = min(paths, alive * 2 ** aim.shape[-1])
        if start:
            error = (codes - aim.unsqueeze(-2)).view(groups, rows * paths, -1)
            if paths == 1:
                sums = sums[..., :start]
            else:
                first = torch.arange(groups * rows, device=target.device).view(groups, rows, 1) * paths
                sums = sums.flatten(0, 1)[(first + parents).flatten(), :start].view(groups, rows * paths, start)
            sums.baddbmm_(error, lower[:, block, :start])
    blocks, place = [], torch.zeros(groups, rows, 1, dtype=torch.int64, device=target.device)
    for codes, parents in reversed(history):
        blocks.append(codes.gather(2, place.unsqueeze(-1).expand(-1, -1, -1, codes.shape[-1])).squeeze(2))
        place = parents.gather(2, place)
    return torch.cat(blocks, dim=-1)
