"""LAPQ (Nahshan et al., "Loss aware post-training quantization", arXiv:1911.07190, 2019).

One scale a layer for its weights and one for its input, chosen together by the loss of the whole quantized network:
scales of least Lp error for several p, the p of least loss by a quadratic fit, then Powell's method on all scales. The
loss needs no labels: it is the cross-entropy against the floating-point network's predictions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from bitsplit.grid import Grid
from bitsplit.methods.aciq import bias_corrected
from bitsplit.methods.base import Codes, Method, RefinableInput, RefinableWeight
from bitsplit.progress import progress
from bitsplit.statistics.moments import LayerStats
from bitsplit.statistics.samples import InputSamples

EXPONENTS = (2.0, 2.5, 3.0, 3.5, 4.0)
_BINS = 2048
_STEP = 1.1  # factor between two scales that Powell's method sees one unit apart


def lp_scale(values: Tensor, grid: Grid, p: float) -> Tensor:
    """The scale () that minimises E|x − Q(x)|^p over all `values`, on a histogram of 2048 bins."""
    magnitude = grid.magnitude(values.flatten()).double()
    largest = magnitude.max().item() if len(magnitude) else 0.0
    if largest == 0:
        return values.new_ones(())
    share = torch.histc(magnitude, _BINS, 0, largest) / len(magnitude)
    centre = (torch.arange(_BINS, dtype=torch.float64, device=values.device) + 0.5) * largest / _BINS

    def error(scale: Tensor) -> Tensor:
        scale = scale.unsqueeze(-1)
        return (share * (centre - grid.quantize(centre, scale) * scale).abs() ** p).sum(dim=-1)

    # The error has several minima: the bracket comes from a dense grid of scales, the rest from scipy.
    dense = torch.linspace(0.02, 1, 99, dtype=torch.float64, device=values.device) * largest / grid.high
    best = int(error(dense).argmin())
    bounds = (dense[max(best - 1, 0)].item(), dense[min(best + 1, len(dense) - 1)].item())
    minimum = minimize_scalar(lambda scale: error(dense.new_tensor(scale)).item(), bounds=bounds, method="bounded")
    return values.new_tensor(minimum.x)


def best_exponent(exponents: Sequence[float], losses: list[float]) -> float:
    """Minimiser of the parabola through (p, loss); the p of least loss where it has none inside the range."""
    square, slope, _ = np.polyfit(exponents, losses, 2)
    vertex = -slope / (2 * square) if square > 0 else np.inf
    if min(exponents) <= vertex <= max(exponents):
        return float(vertex)
    return exponents[int(np.argmin(losses))]


@dataclass(frozen=True)
class LAPQ(Method):
    """Per-layer scales of least calibration loss on `images` of them; first and last layer in floating point.

    One iteration of Powell's method: a line search along each scale. The paper's loss takes 512 images; on ResNet-18
    with glyphs 128, 256 and 512 give top-1 within 0.3 points of each other, without a trend.
    The search ends after `evaluations` of the loss at the latest, each of them a forward of those images.
    """

    images: int = 128
    evaluations: int = 600

    edge_bits: ClassVar[int] = 32  # floating point

    @property
    def refinement_images(self) -> int:
        return self.images * self.evaluations

    def solve_weights(self, stats: LayerStats, weight: Tensor, bits: int) -> Codes:
        return _rounded(weight, bits, lp_scale(weight, Grid(bits), p=2))

    def calibrate_activations(self, samples: InputSamples, grid: Grid) -> Tensor:
        return lp_scale(samples.values, grid, p=2)

    def refine(
        self, weights: list[RefinableWeight], inputs: list[RefinableInput], loss: Callable[[int], float]
    ) -> None:
        # Weights and inputs by turns, so that a search that is cut short has seen both.
        tensors = [tensor for pair in zip_longest(weights, inputs) for tensor in pair if tensor]
        current = np.full(len(tensors), np.nan)

        def put(scales: np.ndarray) -> None:
            for index in np.flatnonzero(scales != current):
                tensor, scale = tensors[index], float(scales[index])
                if isinstance(tensor, RefinableWeight):
                    tensor.put(_rounded(tensor.weight, tensor.bits, tensor.weight.new_tensor(scale)))
                else:
                    tensor.put(tensor.samples.values.new_tensor(scale))
            current[:] = scales

        def loss_at(scales: np.ndarray) -> float:
            put(scales)
            return loss(self.images)

        candidates = [_lp_scales(tensors, p) for p in progress(EXPONENTS, "Lp scales")]
        losses = [loss_at(candidate) for candidate in candidates]
        candidates.append(_lp_scales(tensors, best_exponent(EXPONENTS, losses)))
        losses.append(loss_at(candidates[-1]))
        start = candidates[int(np.argmin(losses))]
        best = (min(losses), start)
        with progress(None, "Powell", self.evaluations) as bar:

            def objective(exponents: np.ndarray) -> float:
                nonlocal best
                scales = start * _STEP**exponents
                value = loss_at(scales)
                best = min(best, (value, scales), key=lambda pair: pair[0])
                bar.update()
                return value

            options = {"maxfev": self.evaluations, "maxiter": 1, "xtol": 1e-2}
            minimize(objective, np.zeros(len(start)), method="Powell", options=options)
        put(best[1])


def _lp_scales(tensors: list[RefinableWeight | RefinableInput], p: float) -> np.ndarray:
    def scale(tensor: RefinableWeight | RefinableInput) -> Tensor:
        if isinstance(tensor, RefinableWeight):
            return lp_scale(tensor.weight, Grid(tensor.bits), p)
        return lp_scale(tensor.samples.values, tensor.grid, p)

    return np.array([scale(tensor).item() for tensor in tensors])


def _rounded(weight: Tensor, bits: int, scale: Tensor) -> Codes:
    scale = scale.expand(weight.shape[:-1])
    return bias_corrected(weight, Grid(bits).quantize(weight, scale.unsqueeze(-1)), scale)
