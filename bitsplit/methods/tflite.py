"""TF-Lite's post-training quantization (Krishnamoorthi, arXiv:1806.08342, 2018): everything scaled by its maximum."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitsplit.grid import Grid
from bitsplit.methods.base import Codes, Method
from bitsplit.statistics.moments import LayerStats
from bitsplit.statistics.samples import InputSamples


@dataclass(frozen=True)
class TFLite(Method):
    """Weights per output channel with α = max|w| / (2^(M−1)−1); activations per layer with the largest value seen."""

    def solve_weights(self, stats: LayerStats, weight: Tensor, bits: int) -> Codes:
        grid = Grid(bits)
        scale = grid.scale_by_max(weight)
        return Codes(grid.quantize(weight, scale.unsqueeze(-1)).to(torch.int8), scale)

    def calibrate_activations(self, samples: InputSamples, grid: Grid) -> Tensor:
        return grid.scale_by_max(torch.tensor([samples.low, samples.high], device=samples.values.device))
