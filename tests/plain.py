"""The loops of the solver in plain torch operations: the oracle of `bitsplit.solver.compiled`, with its names and
contract."""

import torch
from torch import Tensor

from bitsplit.solver.objective import LEAST_GAIN, strongest_coupling

__all__ = ["descend", "descend_plane", "exchange", "extend_paths", "least_pivots", "rescale"]

_BLOCK = 64  # columns between two updates of the whole residual


def descend_plane(plane: Tensor, unit: Tensor, gram: Tensor, residual: Tensor) -> None:
    """As `compiled.descend_plane`."""
    _descend_once(plane, unit, 1, gram, residual)


def rescale(codes: Tensor, scale: Tensor, cross: Tensor, residual: Tensor, active: Tensor) -> None:
    """As `compiled.rescale`."""
    reached = cross - residual  # α Aq
    linear, quadratic = ((codes * values).sum(dim=-1) for values in (cross, reached))
    active = active & (linear * quadratic > 0)
    ratio = torch.where(active, linear / torch.where(active, quadratic, 1), 1)
    scale.mul_(ratio)
    residual.copy_(torch.where(active.unsqueeze(-1), cross - ratio.unsqueeze(-1) * reached, residual))


def descend(
    codes: Tensor,
    scale: Tensor,
    gram: Tensor,
    cross: Tensor,
    residual: Tensor,
    high: float,
    rounds: int,
    tolerance: float,
) -> int:
    """As `compiled.descend`."""
    active, total = torch.ones_like(scale, dtype=torch.bool), torch.zeros_like(scale)
    taken = 0
    while taken < rounds and active.any():
        before, pull = codes.clone(), residual.clone()
        _descend_once(codes, scale * active, high, gram, residual)
        # f falls by Δᵀ(r + r') where the weight moves by Δ = α Δq and the residual from r to r'.
        gain = (scale.unsqueeze(-1) * (codes - before) * (pull + residual)).sum(dim=-1)
        rescale(codes, scale, cross, residual, active)
        total += gain
        active &= gain > tolerance * total
        taken += 1
    return taken


def exchange(
    codes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor, residual: Tensor, high: float, rounds: int
) -> None:
    """As `compiled.exchange`."""
    diagonal, coupling = gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-2), strongest_coupling(gram)
    everywhere = torch.ones_like(scale, dtype=torch.bool)
    for _ in range(rounds):
        before, unit = codes.clone(), scale.unsqueeze(-1)
        single = unit.square() * diagonal
        for n in range(gram.shape[-1]):
            up = torch.where((codes < high) & (single > 0), single - 2 * unit * residual, torch.inf)
            down = torch.where((codes > -high) & (single > 0), single + 2 * unit * residual, torch.inf)
            step = torch.where(up[..., n] < down[..., n], 1.0, -1.0).to(codes.dtype)
            cost = torch.minimum(up[..., n], down[..., n])
            cost = torch.where(cost < scale.square() * coupling[..., n : n + 1], cost, torch.inf)
            joint = 2 * unit.square() * step.unsqueeze(-1) * gram[..., n : n + 1, :]
            pair = torch.stack([up + joint, down - joint], dim=-1)
            pair[..., n, :] = torch.inf
            least, index = pair.flatten(-2).min(dim=-1)
            better = cost + least < -LEAST_GAIN * single[..., n]
            partner, other = index // 2, (1 - 2 * (index % 2)) * better
            change = torch.zeros_like(codes).scatter_(-1, partner.unsqueeze(-1), other.unsqueeze(-1).to(codes.dtype))
            change[..., n] += step * better
            codes += change
            residual -= unit * (change @ gram)
        rescale(codes, scale, cross, residual, everywhere)
        if torch.equal(before, codes):
            break


def extend_paths(
    target: Tensor, sums: Tensor, lower: Tensor, pivots: Tensor, cost: Tensor, alive: int, high: float
) -> tuple[Tensor, Tensor]:
    """As `compiled.extend_paths`."""
    paths = cost.shape[-1]
    price = cost.clone()
    price[..., alive:] = torch.inf
    sums, codes = sums.clone(), torch.empty_like(sums)
    parents = torch.arange(paths, device=cost.device).expand(cost.shape)
    for n in reversed(range(target.shape[-1])):
        centre = target[..., n : n + 1] - sums[..., n]
        nearest = ((centre - high % 1).round() + high % 1).clamp(-high, high)
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


def least_pivots(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `compiled.least_pivots`."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    pivot, taken, factor = diagonal.clone(), [], gram.new_zeros((len(gram), count, gram.shape[-1]))
    for step in range(count):
        least, best = pivot.min(dim=-1, keepdim=True)
        for marked in (pivot, diagonal):
            marked.scatter_(-1, best, torch.inf)
        row = gram.gather(-2, best.unsqueeze(-1).expand(-1, -1, gram.shape[-1]))
        known = factor[:, :step]
        row = (row - known.gather(-1, best.unsqueeze(-2).expand(-1, step, -1)).mT @ known).squeeze(-2)
        factor[:, step] = torch.where((least > 0) & pivot.isfinite(), row / least.clamp_min(0).sqrt(), 0)
        pivot -= factor[:, step].square()
        taken.append(best)
    return torch.cat(taken, dim=-1), factor


def _descend_once(codes: Tensor, unit: Tensor, bound: float, gram: Tensor, residual: Tensor) -> None:
    """One round over all columns, in place on codes (G, M, N) −bound, 1 − bound, …, bound, and on the residual c − αAq.

    Each coordinate moves to its optimum given the others. The residual is kept up to date in blocks of columns: inside
    a block by rank-1 updates with the block's part of A, after it by one matrix product for all columns.
    """
    curvature = unit.unsqueeze(-1) * gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    movable = curvature != 0
    step = torch.where(movable, 1 / torch.where(movable, curvature, 1), 0)
    inputs = gram.shape[-1]
    for start in range(0, inputs, _BLOCK):
        columns = slice(start, min(start + _BLOCK, inputs))
        before = codes[..., columns].to(gram.dtype)
        after = _block(before, residual[..., columns], step[..., columns], unit, bound, gram[..., columns, columns])
        residual -= (unit.unsqueeze(-1) * (after - before)) @ gram[..., columns, :]
        codes[..., columns] = after.to(codes.dtype)


def _block(codes: Tensor, residual: Tensor, step: Tensor, unit: Tensor, bound: float, gram: Tensor) -> Tensor:
    """One block of B columns: codes, residual and step (G, M, B), gram (G, B, B). Returns the new codes.

    Columns are laid out first, so that each coordinate's rows are contiguous.
    """
    # Copies, always: what is changed here must not reach the caller's tensors.
    layout = torch.contiguous_format
    codes, residual, step = (t.movedim(-1, 0).clone(memory_format=layout) for t in (codes, residual, step))
    gram_columns = gram.movedim(-1, 0).unsqueeze(-1).movedim(-2, 1)  # (B, B, G, 1): column n of every group
    for n in range(len(codes)):
        best = torch.addcmul(codes[n], residual[n], step[n]).sub_(bound % 1).round_().add_(bound % 1)
        best.clamp_(-bound, bound)
        change = (best - codes[n]) * unit
        codes[n] = best
        residual[n + 1 :].addcmul_(gram_columns[n, n + 1 :], change, value=-1)
    return codes.movedim(0, -1)
