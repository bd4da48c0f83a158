"""Bit-split and stitching (Wang, Chen, He, Cheng, ICML 2020): METHODS sections 2 to 4."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bitsplit import solver
from bitsplit.grid import Grid
from bitsplit.methods.base import Codes, Method
from bitsplit.stats import InputSamples, LayerStats


@dataclass(frozen=True)
class BitSplit(Method):
    """Weights: minimise ‖y − αqX‖² plane by plane, at most `sweeps` rounds. Activations: one scale a layer that
    minimises the squared error of the input by alternation; of unsigned inputs only the positive values count."""

    sweeps: int = solver.SWEEPS

    algorithm: ClassVar[str] = "planes"
    batch_norm: ClassVar[str] = "reestimate"

    def solve_weights(self, stats: LayerStats, weight: Tensor, bits: int) -> Codes:
        solution = solver.solve(
            stats.gram, stats.cross, bits, weight=weight, algorithm=self.algorithm, sweeps=self.sweeps
        )
        return Codes(solution.codes, solution.scale)

    def calibrate_activations(self, samples: InputSamples, grid: Grid) -> Tensor:
        values = samples.values.flatten()
        return grid.scale_by_alternation(values if grid.signed else values[values > 0])
