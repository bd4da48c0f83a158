"""Second moments of what a layer reads in the quantized network, against its output in the floating-point one."""

import torch
from torch import Tensor

from bitsplit.statistics.moments import LayerStats, average_in, mirror

_FAR = 30.0  # from zero, in spreads: there float32 would leave a centred product few digits


class PairedMoments:
    """Running moments of patches X of the floating-point network and X̂, at the same places, of the quantized one.

    weight (G, M, N) is the floating-point layer's, so that its output is Y = W X; the target may ask for more. After
    all patches `mean_read` (G, 1, N) and `mean_output` (G, 1, M) are the means of X̂ and of the target, `mean_missing`
    (G, 1, M) that of what the target asks for beyond Y.
    """

    def __init__(self, weight: Tensor):
        groups, outputs, inputs = weight.shape
        self._weight, self._count = weight, 0
        self._gram = weight.new_zeros(groups, inputs, inputs)
        self._cross = weight.new_zeros(groups, outputs, inputs)
        self._energy = weight.new_zeros(groups, outputs)
        # Sums are of differences from these, so that images in raw counts of a sensor, say, lose no digits.
        self._read_origin, self._mean_read = (weight.new_zeros(groups, 1, inputs) for _ in range(2))
        self._output_origin, self._mean_output, self.mean_missing = (
            weight.new_zeros(groups, 1, outputs) for _ in range(3)
        )

    @property
    def mean_read(self) -> Tensor:
        return self._read_origin + self._mean_read

    @property
    def mean_output(self) -> Tensor:
        return self._output_origin + self._mean_output

    def add(self, x: Tensor, read: Tensor, missing: Tensor | None = None) -> None:
        """x, read (G, K, N): patches of X and X̂; missing (G, K, M): what the target asks for beyond Y."""
        if not read.shape[1]:
            return
        output = x @ self._weight.mT
        if missing is not None:
            output += missing
        if not self._count:
            self._find_origins(read, output)
        if self._read_origin.any():
            read, output = read - self._read_origin, output - self._output_origin
        before, self._count = self._count, self._count + read.shape[1]
        old, new = before / self._count, 1 / self._count
        average_in(self._gram, read, before)
        self._cross.baddbmm_(output.mT, read, beta=old, alpha=new)
        self._energy.mul_(old).add_(output.square().sum(dim=1), alpha=new)
        self._mean_read.mul_(old).add_(read.sum(dim=1, keepdim=True), alpha=new)
        self._mean_output.mul_(old).add_(output.sum(dim=1, keepdim=True), alpha=new)
        if missing is not None:
            self.mean_missing.mul_(old).add_(missing.sum(dim=1, keepdim=True), alpha=new)

    def _find_origins(self, read: Tensor, output: Tensor) -> None:
        """From the first patches: zero, but for inputs that lie far from it, and then for the outputs."""
        mean, spread = read.mean(dim=1, keepdim=True), read.var(dim=1, correction=0).mean().sqrt()
        far = mean.abs() > _FAR * spread
        self._read_origin = torch.where(far, mean, torch.zeros_like(mean))
        if far.any():
            self._output_origin = output.mean(dim=1, keepdim=True)

    def stats(self, centred: bool) -> LayerStats:
        """gram = X̂X̂ᵀ/n, cross = YX̂ᵀ/n and energy = ‖y‖²/n; `centred` about the means, where something else brings the
        means in order."""
        mirror(self._gram)
        gram, cross, energy = self._gram, self._cross, self._energy
        if centred:
            gram = gram - self._mean_read.mT @ self._mean_read
            cross = cross - self._mean_output.mT @ self._mean_read
            energy = (energy - self._mean_output[:, 0].square()).clamp_min(0)
        elif self._read_origin.any():
            read, output = self.mean_read, self.mean_output
            gram = gram + read.mT @ read - self._mean_read.mT @ self._mean_read
            cross = cross + output.mT @ read - self._mean_output.mT @ self._mean_read
            energy = energy + output[:, 0].square() - self._mean_output[:, 0].square()
        return LayerStats(gram, cross, energy, self._count)

    def mean_error(self, weight: Tensor) -> Tensor:
        """By how much the mean output of `weight` (G, M, N) reading X̂ falls short of the target's mean, (G · M,)."""
        return (self.mean_output - self.mean_read @ weight.mT).flatten()


def compensating(stats: LayerStats, weight: Tensor, share: float, damping: float) -> LayerStats:
    """Statistics whose minimiser makes up for a `share` of what was lost before the layer: the target W(X̂ + λ(X − X̂)).

    With λ = 1 it would make up for all, and learns the noise of few images. `damping`, a part of A's mean diagonal,
    is added to A towards W, so that directions which the images hardly show keep their weights.
    """
    cross = share * stats.cross + (1 - share) * (weight @ stats.gram)
    added = damping * stats.gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[:, None, None]
    gram = stats.gram + added * torch.eye(stats.gram.shape[-1], dtype=stats.gram.dtype, device=stats.gram.device)
    return LayerStats(gram, cross + added * weight, stats.energy, stats.n)
