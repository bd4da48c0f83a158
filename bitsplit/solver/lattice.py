"""Integers nearer to the best than the planes': f as a distance in a lattice, and the search for its nearest points.

With A = RᵀR (R upper triangular, D its diagonal, U = D⁻¹R) and the least-squares weights w (wᵀA = cᵀ),

    f(α, q) + wᵀA w = (αq − w)ᵀ A (αq − w) = α² Σ_n D_n² (q_n − t_n + Σ_{j>n} U_nj (q_j − t_j))²,      t = w / α.

From the last coordinate to the first, each term is least at the integer nearest to its centre, given those chosen
before: that is `gptq`, one path. Keeping the K cheapest choices instead of one is the K-best search of lattice decoding
(Guo and Nilsson 2006). What it finds is refined by coordinate descent on the integers (`descend_integers`), which never
raises f, and by the optimal scale. Shapes as in `bitsplit`. Letters in the code:

    lower = Uᵀ     pivots = D²     target = w, or t = w / α in the search     offset = c − wA, what damping leaves of 0
"""

import torch
from torch import Tensor

from bitsplit.grid import Grid
from bitsplit.solver import compiled
from bitsplit.solver.gptq import BLOCK, damped, factored, k_best, mean_damping
from bitsplit.solver.integers import TOLERANCE, Point, descend_integers, integers, refine_rounding
from bitsplit.solver.objective import living, rest_dead_inputs

# Scales tried with one path, as multiples of the alternation's; the smaller ones clip the largest weights.
SCALES = (0.65, 0.8, 0.9, 1.0, 1.1)
# Scales tried with many paths, as multiples of the best of those.
NEARBY = (0.96, 1.0, 1.04)
EXCHANGES = 3  # rounds of steps by two coordinates; later ones gain less than a thousandth
_MOST_PATHS = 64
_MOST_INPUTS = 8192


def lattice(gram: Tensor, cross: Tensor, weight: Tensor, grid: Grid, rounds: int) -> tuple[Tensor, Tensor, int]:
    """The best of Babai's points at several scales and of the K-best search around the best scale, each one refined.

    Row by row; a row's own rounded weights, refined (`integers`), are among the candidates, and the best candidate is
    refined by `exchange_pairs` as well. Coordinates are chosen in the order of `least_pivots_first`, from its end.
    Returns as `integers` does; above 8,192 inputs, where the factorisation would need many gigabytes, it is `integers`.
    """
    if gram.shape[-1] > _MOST_INPUTS:
        return integers(gram, cross, weight, grid, rounds)
    start = grid.scale_by_alternation(weight)
    rounded = refine_rounding(gram, cross, weight, start, grid, rounds)
    order = least_pivots_first(gram)
    gram, cross, weight = _permuted(gram, order), _by_column(cross, order), _by_column(weight, order)
    lower, pivots, target, offset = factored(gram, cross, weight * living(gram))

    def candidate(scale: Tensor, paths: int) -> Point:
        codes = k_best(target / scale.unsqueeze(-1), lower, pivots, grid.high, paths)
        return descend_integers(rest_dead_inputs(codes, gram, grid), scale, gram, cross, grid.high, rounds)

    best = rounded._replace(codes=_by_column(rounded.codes, order), residual=_by_column(rounded.residual, order))
    for ratio in SCALES:
        best = _better(best, candidate(start * ratio, paths=1), target, offset)
    around, paths = best.scale, _affordable_paths(*cross.shape)
    for ratio in NEARBY:
        best = _better(best, candidate(around * ratio, paths), target, offset)
    best = exchange_pairs(best, gram, cross, grid.high, rounds)
    return _by_column(best.codes, order.argsort(dim=-1)), best.scale, best.rounds


def exchange_pairs(point: Point, gram: Tensor, cross: Tensor, high: float, rounds: int) -> Point:
    """Steps of two coordinates at once from where `descend` cannot move, and `descend` after them; f never rises.

    With r = c − αAq, steps s and t of coordinates n and m change f by
    α²(s²A_nn + t²A_mm + 2st A_nm) − 2α(s r_n + t r_m).
    """
    codes, scale, residual = (part.clone(memory_format=torch.contiguous_format) for part in point[:3])
    gram, cross = gram.contiguous(), cross.contiguous()
    compiled.exchange(codes, scale, gram, cross, residual, high, EXCHANGES)
    taken = compiled.descend(codes, scale, gram, cross, residual, high, min(EXCHANGES, rounds), TOLERANCE)
    return Point(codes, scale, residual, max(point.rounds, taken))


def least_pivots_first(gram: Tensor) -> Tensor:
    """Coordinates (G, N) in the order of a Cholesky factorisation of the damped A that always takes the least pivot.

    A coordinate's pivot is what is left of A_nn when those taken before it are free to follow it. The search chooses
    in the opposite order: where a wrong choice costs most it is made first, and the rest can make up for it
    (the sorted QR decomposition of Wübben et al. 2001; "min-pivot" in Chen et al. 2025).
    """
    rest, order = damped(gram, mean_damping(gram)), []
    for first in range(0, gram.shape[-1], BLOCK):
        taken, factor = compiled.least_pivots(rest, min(BLOCK, gram.shape[-1] - first))
        rest.baddbmm_(factor.mT, factor, alpha=-1)
        order.append(taken)
    return torch.cat(order, dim=-1)


def _better(best: Point, new: Point, target: Tensor, offset: Tensor) -> Point:
    """Row by row the point of less error."""
    # f but for a constant of each row, from small numbers: float32 then tells the best candidates apart.
    errors = [
        -((point.scale.unsqueeze(-1) * point.codes - target) * (point.residual + offset)).sum(dim=-1)
        for point in (best, new)
    ]
    better = errors[1] < errors[0]
    codes, residual = (
        torch.where(better.unsqueeze(-1), getattr(new, part), getattr(best, part)) for part in ("codes", "residual")
    )
    return Point(codes, torch.where(better, new.scale, best.scale), residual, max(best.rounds, new.rounds))


def _affordable_paths(groups: int, rows: int, inputs: int) -> int:
    """As many paths as three searches follow in about the time of three GPTQ-style solves of the layer.

    Both take time in proportion to rows · inputs, the solve besides for each column as much as 600 rows cost it, the
    search besides for its products with the Gram matrix (measured on CPUs of two cores). Few inputs need few paths.
    """
    affordable = 2700 * (1 + 600 / (groups * rows)) / (600 + inputs)
    return int(max(2, min(_MOST_PATHS, inputs, affordable)))


def _by_column(values: Tensor, order: Tensor) -> Tensor:
    return values.gather(-1, order.unsqueeze(-2).expand(-1, values.shape[-2], -1))


def _permuted(gram: Tensor, order: Tensor) -> Tensor:
    return _by_column(_by_column(gram, order).mT, order)
