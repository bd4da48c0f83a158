"""Coordinate descent in plain torch operations: the oracle of `kernels` and what runs on GPUs."""

import torch
from torch import Tensor

_BLOCK = 64  # columns between two updates of the whole residual


def descend_once(codes: Tensor, unit: Tensor, bound: int, gram: Tensor, residual: Tensor) -> None:
    """One round over all columns, in place on codes (G, M, N) of −bound..bound and on the residual c − αAq (G, M, N).

    `unit` (G, M) is what a code of one adds to the weight. Each coordinate moves to its optimum given the others. The
    residual is kept up to date in blocks of columns: inside a block by rank-1 updates with the block's part of A, after
    it by one matrix product for all columns.
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


def _block(codes: Tensor, residual: Tensor, step: Tensor, unit: Tensor, bound: int, gram: Tensor) -> Tensor:
    """One block of B columns: codes, residual and step (G, M, B), gram (G, B, B). Returns the new codes.

    Columns are laid out first, so that each coordinate's rows are contiguous.
    """
    # Copies, always: what is changed here must not reach the caller's tensors.
    layout = torch.contiguous_format
    codes, residual, step = (t.movedim(-1, 0).clone(memory_format=layout) for t in (codes, residual, step))
    gram_columns = gram.movedim(-1, 0).unsqueeze(-1).movedim(-2, 1)  # (B, B, G, 1): column n of every group
    for n in range(len(codes)):
        best = torch.addcmul(codes[n], residual[n], step[n]).round_().clamp_(-bound, bound)
        change = (best - codes[n]) * unit
        codes[n] = best
        residual[n + 1 :].addcmul_(gram_columns[n, n + 1 :], change, value=-1)
    return codes.movedim(0, -1)
