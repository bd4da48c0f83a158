"""GPTQ's weights (Frantar et al., "GPTQ", ICLR 2023) in bit-split's place, all else as in bit-split."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bitsplit.grid import Grid
from bitsplit.methods.base import Codes, Method
from bitsplit.methods.bitsplit import BitSplit
from bitsplit.solver.bitsplit import solve
from bitsplit.statistics.moments import LayerStats
from bitsplit.statistics.samples import InputSamples


@dataclass(frozen=True)
class GPTQ(Method):
    """Weights: rounded column by column with error feedback (`solver/gptq.py`), then the optimal scale. Activations,
    batch-norm and first and last layer are bit-split's, so that the weights alone differ."""

    algorithm: ClassVar[str] = "gptq"
    batch_norm: ClassVar[str] = BitSplit.batch_norm
    classifier_in_weight_space: ClassVar[bool] = BitSplit.classifier_in_weight_space

    def solve_weights(self, stats: LayerStats, weight: Tensor, bits: int) -> Codes:
        solution = solve(stats.gram, stats.cross, bits, weight, self.algorithm)
        return Codes(solution.codes, solution.scale)

    def calibrate_activations(self, samples: InputSamples, grid: Grid) -> Tensor:
        return BitSplit().calibrate_activations(samples, grid)
