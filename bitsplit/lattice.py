"""Integers nearer to the best than the planes': f as a distance in a lattice, and the search for its nearest points.

With A = RᵀR (R upper triangular, D its diagonal, U = D⁻¹R) and the least-squares weights w (wᵀA = cᵀ),

    f(α, q) + wᵀA w = (αq − w)ᵀ A (αq − w) = α² Σ_n D_n² (q_n − t_n + Σ_{j>n} U_nj (q_j − t_j))²,      t = w / α.

From the last coordinate to the first, each term is least at the integer nearest to its centre, given those chosen
before: Babai's nearest plane (Babai 1986), which is GPTQ's error feedback on the same Gram matrix (Frantar et al.,
"GPTQ", ICLR 2023; Chen et al., "The geometry of LLM quantization", 2025). Keeping the K cheapest choices instead of
one is the K-best search of lattice decoding (Guo and Nilsson 2006). What it finds is refined by coordinate descent on
the integers (`descend`), which never raises f, and by the optimal scale. Shapes as in `solver`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bitsplit import kernels, search_kernels
from bitsplit.descent import descend_once
from bitsplit.grid import Grid
from bitsplit.objective import optimal_scale

# Scales tried with one path, as multiples of the alternation's; the smaller ones clip the largest weights.
SCALES = (0.65, 0.8, 0.9, 1.0, 1.1)
# Scales tried with many paths, as multiples of the best of those.
NEARBY = (0.96, 1.0, 1.04)
DAMPING = 0.01  # of A's mean diagonal, added to it before it is factored (GPTQ's value)
TOLERANCE = 1e-4  # a round of descent that gains less of what all rounds have gained is a row's last
EXCHANGES = 3  # rounds of steps by two coordinates; later ones gain less than a thousandth
_MOST_PATHS = 64
_BLOCK = 64  # columns between two updates of all the columns before them
_MOST_INPUTS = 8192
_SCRATCH = 2**25  # numbers in the largest temporary array


def integers(gram: Tensor, cross: Tensor, weight: Tensor, bits: int, rounds: int) -> tuple[Tensor, Tensor, int]:
    """Coordinate descent on the stitched integers from the weights rounded at the alternation's scale.

    Returns codes (G, M, N) in the dtype of `gram`, the scale (G, M), and the bound on the rounds.
    """
    grid = Grid(bits)
    codes, scale, _ = _refined_rounding(gram, cross, weight, grid.scale_by_alternation(weight), grid, rounds)
    return codes, scale, rounds


def lattice(gram: Tensor, cross: Tensor, weight: Tensor, bits: int, rounds: int) -> tuple[Tensor, Tensor, int]:
    """The best of Babai's points at several scales and of the K-best search around the best scale, each one refined.

    Row by row; a row's own rounded weights, refined (`integers`), are among the candidates, and the best candidate is
    refined by `exchange` as well. Coordinates are chosen in the order of `least_pivots_first`, from its end. Returns as
    `integers` does; above 8,192 inputs, where the factorisation would need many gigabytes, it is `integers`.
    """
    if gram.shape[-1] > _MOST_INPUTS:
        return integers(gram, cross, weight, bits, rounds)
    grid = Grid(bits)
    first = grid.scale_by_alternation(weight)
    best = _refined_rounding(gram, cross, weight, first, grid, rounds)
    order = least_pivots_first(gram)
    gram, cross, weight = _permuted(gram, order), _by_column(cross, order), _by_column(weight, order)
    weight = weight * _alive(gram)
    lower, pivots, target, offset = factored(gram, cross, weight)

    def error_of(codes: Tensor, scale: Tensor, residual: Tensor) -> Tensor:
        """f but for a constant of each row, from small numbers: float32 then tells the best candidates apart."""
        return -((scale.unsqueeze(-1) * codes - target) * (residual + offset)).sum(dim=-1)

    best = Point(_by_column(best.codes, order), best.scale, _by_column(best.residual, order))
    error = error_of(*best)

    def consider(start: Tensor, paths: int) -> None:
        nonlocal best, error
        codes = k_best(target / start.unsqueeze(-1), lower, pivots, grid.high, paths) * _alive(gram)
        new = descend(codes, start, gram, cross, grid.high, rounds)
        new_error = error_of(*new)
        better = new_error < error
        for kept, found in zip((error, *best), (new_error, *new), strict=True):
            torch.where(better if found.dim() == 2 else better.unsqueeze(-1), found, kept, out=kept)

    for ratio in SCALES:
        consider(first * ratio, paths=1)
    around = best.scale.clone()
    for ratio in NEARBY:
        consider(around * ratio, paths=_paths(*cross.shape))
    best = exchange(best, gram, cross, grid.high)
    return _by_column(best.codes, order.argsort(dim=-1)), best.scale, rounds


class Point(NamedTuple):
    """A candidate for every row: codes (G, M, N) in the dtype of `gram`, scale (G, M), residual c − αAq (G, M, N)."""

    codes: Tensor
    scale: Tensor
    residual: Tensor


def descend(codes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor, high: int, rounds: int) -> Point:
    """Coordinate descent on integer codes with the scale optimised before and after every round; at most `rounds`.

    A coordinate moves to the integer nearest to its free optimum q_n + (c − αAq)_n / (α A_nn), so f never rises. Rows
    that have converged are left alone.
    """
    codes = codes.clone(memory_format=torch.contiguous_format)
    reached = codes @ gram
    scale = _rescaled(codes, scale, gram, cross, reached).contiguous()
    return _descended(Point(codes, scale, cross - scale.unsqueeze(-1) * reached), gram, cross, high, rounds)


def _descended(point: Point, gram: Tensor, cross: Tensor, high: int, rounds: int) -> Point:
    """`descend` from a point of optimal scale, whose tensors it takes over."""
    codes, scale, residual = point
    if codes.device.type == "cpu":
        kernels.descend(codes, scale, gram.contiguous(), cross.contiguous(), residual, high, rounds, TOLERANCE)
    else:
        scale = descend_in_blocks(codes, scale, gram, cross, residual, high, rounds)
    return Point(codes, scale, residual)


def descend_in_blocks(
    codes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor, residual: Tensor, high: int, rounds: int
) -> Tensor:
    """`descend` in plain torch operations, in place on codes and residual; returns the scale."""
    for _ in range(rounds):
        before = codes.clone()
        descend_once(codes, scale, high, gram, residual)
        reached = codes @ gram
        scale = _rescaled(codes, scale, gram, cross, reached)
        residual.copy_(cross - scale.unsqueeze(-1) * reached)
        if torch.equal(before, codes):
            break
    return scale


def exchange(point: Point, gram: Tensor, cross: Tensor, high: int) -> Point:
    """Steps of two coordinates at once from where `descend` cannot move, and `descend` after them; f never rises.

    With r = c − αAq, steps s and t of coordinates n and m change f by
    α²(s²A_nn + t²A_mm + 2st A_nm) − 2α(s r_n + t r_m).
    """
    codes, scale, residual = (part.clone(memory_format=torch.contiguous_format) for part in point)
    if codes.device.type == "cpu":
        kernels.exchange(codes, scale, gram.contiguous(), cross.contiguous(), residual, high, EXCHANGES)
    else:
        scale = exchange_plainly(codes, scale, gram, cross, residual, high, EXCHANGES)
    return _descended(Point(codes, scale, residual), gram, cross, high, EXCHANGES)


def exchange_plainly(
    codes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor, residual: Tensor, high: int, rounds: int
) -> Tensor:
    """`kernels.exchange` in plain torch operations, in place on codes and residual; returns the scale."""
    diagonal, coupling = gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-2), kernels.strongest_coupling(gram)
    for _ in range(rounds):
        before, unit = codes.clone(), scale.unsqueeze(-1)
        own = unit.square() * diagonal
        for n in range(gram.shape[-1]):
            up = torch.where((codes < high) & (own > 0), own - 2 * unit * residual, torch.inf)
            down = torch.where((codes > -high) & (own > 0), own + 2 * unit * residual, torch.inf)
            step = torch.where(up[..., n] < down[..., n], 1.0, -1.0).to(codes.dtype)
            cost = torch.minimum(up[..., n], down[..., n])
            cost = torch.where(cost < scale.square() * coupling[..., n : n + 1], cost, torch.inf)
            joint = 2 * unit.square() * step.unsqueeze(-1) * gram[..., n : n + 1, :]
            pair = torch.stack([up + joint, down - joint], dim=-1)
            pair[..., n, :] = torch.inf
            least, index = pair.flatten(-2).min(dim=-1)
            better = cost + least < -float(kernels.LEAST_GAIN) * own[..., n]
            partner, other = index // 2, (1 - 2 * (index % 2)) * better
            change = torch.zeros_like(codes).scatter_(-1, partner.unsqueeze(-1), other.unsqueeze(-1).to(codes.dtype))
            change[..., n] += step * better
            codes += change
            residual -= unit * (change @ gram)
        reached = codes @ gram
        scale = _rescaled(codes, scale, gram, cross, reached)
        residual.copy_(cross - scale.unsqueeze(-1) * reached)
        if torch.equal(before, codes):
            break
    return scale


def k_best(target: Tensor, lower: Tensor, pivots: Tensor, high: int, paths: int) -> Tensor:
    """The best codes (G, M, N) that a search with K = `paths` paths a row finds for targets t (G, M, N).

    lower (G, N, N) = Uᵀ and pivots (G, N) = diag(D²). One path is Babai's nearest plane.
    """
    rows = max(_BLOCK, _SCRATCH // (paths * target.shape[-1]))
    parts = target.split(rows, dim=-2)
    return torch.cat([_k_best(part, lower, pivots, high, paths) for part in parts], dim=-2)


def _k_best(target: Tensor, lower: Tensor, pivots: Tensor, high: int, paths: int) -> Tensor:
    groups, rows, inputs = target.shape
    extend = search_kernels.extend_paths if target.device.type == "cpu" else extend_paths
    sums = target.new_zeros(groups, rows * paths, inputs)  # Σ_j U_nj (q_j − t_j) over the columns that are chosen
    cost, alive, history = target.new_zeros(groups, rows, paths), 1, []
    for start in reversed(range(0, inputs, _BLOCK)):
        block = slice(start, min(start + _BLOCK, inputs))
        aim = target[..., block].contiguous()
        known = sums[..., block].reshape(groups, rows, paths, -1).contiguous()
        codes, parents = extend(
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


def extend_paths(
    target: Tensor, sums: Tensor, lower: Tensor, pivots: Tensor, cost: Tensor, alive: int, high: int
) -> tuple[Tensor, Tensor]:
    """`search_kernels.extend_paths` in plain torch operations."""
    paths = cost.shape[-1]
    price = cost.clone()
    price[..., alive:] = torch.inf
    sums, codes = sums.clone(), torch.empty_like(sums)
    parents = torch.arange(paths, device=cost.device).expand(cost.shape)
    for n in reversed(range(target.shape[-1])):
        centre = target[..., n : n + 1] - sums[..., n]
        nearest = centre.round().clamp(-high, high)
        step = torch.where(centre > nearest, 1.0, -1.0).to(centre.dtype)
        second = torch.where((nearest + step).abs() <= high, nearest + step, nearest - step)
        options = torch.stack([nearest, second][: min(paths, 2)], dim=-1)
        prices = price.unsqueeze(-1) + pivots[:, None, None, n, None] * (options - centre.unsqueeze(-1)).square()
        price, index = prices.flatten(-2).topk(paths, largest=False)
        origin = index // options.shape[-1]
        chosen = options.flatten(-2).gather(-1, index)
        sums, codes = (t.gather(2, origin.unsqueeze(-1).expand(t.shape)) for t in (sums, codes))
        parents = parents.gather(2, origin)
        codes[..., n] = chosen
        error = chosen - target[..., n : n + 1]
        sums[..., :n] += lower[:, None, None, n, :n] * error.unsqueeze(-1)
    cost.copy_(price)
    return codes, parents


def least_pivots_first(gram: Tensor) -> Tensor:
    """Coordinates (G, N) in the order of a Cholesky factorisation of the damped A that always takes the least pivot.

    A coordinate's pivot is what is left of A_nn when those taken before it are free to follow it. The search chooses
    in the opposite order: where a wrong choice costs most it is made first, and the rest can make up for it
    (the sorted QR decomposition of Wübben et al. 2001; "min-pivot" in Chen et al. 2025).
    """
    pivots = search_kernels.least_pivots if gram.device.type == "cpu" else least_pivots
    rest, order = _damped(gram, _damping(gram)), []
    for first in range(0, gram.shape[-1], _BLOCK):
        taken, factor = pivots(rest, min(_BLOCK, gram.shape[-1] - first))
        rest.baddbmm_(factor.mT, factor, alpha=-1)
        order.append(taken)
    return torch.cat(order, dim=-1)


def least_pivots(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`search_kernels.least_pivots` in plain torch operations."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    pivot, taken, factor = diagonal.clone(), [], gram.new_zeros((len(gram), count, gram.shape[-1]))
    for step in range(count):
        least, best = pivot.min(dim=-1, keepdim=True)
        for marked in (pivot, diagonal):
            marked.scatter_(-1, best, torch.inf)
        row = gram.gather(-2, best.unsqueeze(-1).expand(-1, -1, gram.shape[-1]))
        row = (row - _by_column(factor[:, :step], best).mT @ factor[:, :step]).squeeze(-2)
        factor[:, step] = torch.where((least > 0) & pivot.isfinite(), row / least.clamp_min(0).sqrt(), 0)
        pivot -= factor[:, step].square()
        taken.append(best)
    return torch.cat(taken, dim=-1), factor


def factored(gram: Tensor, cross: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Uᵀ (G, N, N) and D² (G, N) of the damped Gram matrix; the least-squares weights w, and c − wA (G, M, N)."""
    damping = _damping(gram)
    while True:
        lower, failed = torch.linalg.cholesky_ex(_damped(gram, damping))
        if not failed.any():
            break
        damping = torch.where(failed > 0, 10 * damping, damping)  # rounding has cost A its positive eigenvalues
    weight = weight + torch.cholesky_solve((cross - weight @ gram).mT, lower).mT
    diagonal = lower.diagonal(dim1=-2, dim2=-1).clone()
    return lower / diagonal.unsqueeze(-2), diagonal.square(), weight, cross - weight @ gram


def _damping(gram: Tensor) -> Tensor:
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    return DAMPING * torch.where(mean > 0, mean, 1)


def _damped(gram: Tensor, damping: Tensor) -> Tensor:
    damped = gram.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(damping.unsqueeze(-1))
    return damped


def _paths(groups: int, rows: int, inputs: int) -> int:
    """As many paths as three searches follow in about the time of three GPTQ-style solves of the layer.

    Both take time in proportion to rows · inputs, the solve besides for each column as much as 600 rows cost it, the
    search besides for its products with the Gram matrix (measured on CPUs of two cores). Few inputs need few paths.
    """
    affordable = 2700 * (1 + 600 / (groups * rows)) / (600 + inputs)
    return int(max(2, min(_MOST_PATHS, inputs, affordable)))


def _refined_rounding(gram: Tensor, cross: Tensor, weight: Tensor, scale: Tensor, grid: Grid, rounds: int) -> Point:
    codes = grid.quantize(weight, scale.unsqueeze(-1)) * _alive(gram)
    return descend(codes, scale, gram, cross, grid.high, rounds)


def _rescaled(codes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor, reached: Tensor) -> Tensor:
    """The optimal scale (G, M), or the given one where the optimal one would not be positive; `reached` is qᵀA."""
    found = optimal_scale(codes, gram, cross, scale, reached)
    return torch.where(found > 0, found, scale)


def _alive(gram: Tensor) -> Tensor:
    """Which inputs carry a signal at all, (G, 1, N); the codes of the others are 0."""
    return gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-2) > 0


def _by_column(values: Tensor, order: Tensor) -> Tensor:
    return values.gather(-1, order.unsqueeze(-2).expand(-1, values.shape[-2], -1))


def _permuted(gram: Tensor, order: Tensor) -> Tensor:
    return _by_column(_by_column(gram, order).mT, order)
