"""Bit-split and stitching (Wang, Chen, He, Cheng, ICML 2020): `solver/bitsplit.py` for the weights, and the activation
scales of the published code."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bitsplit.grid import Grid
from bitsplit.methods.base import Codes, Method
from bitsplit.solver.bitsplit import ROUNDS, solve
from bitsplit.statistics.moments import LayerStats
from bitsplit.statistics.samples import InputSamples


@dataclass(frozen=True)
class BitSplit(Method):
    """Weights: minimise ‖y − αqX‖² plane by plane, at most `rounds` rounds. Activations: one scale a layer that
    minimises the squared error of the input by alternation; of unsigned inputs only the positive values count."""

    rounds: int = ROUNDS

    algorithm: ClassVar[str] = "planes"
    midrise: ClassVar[bool] = False
    batch_norm: ClassVar[str] = "reestimate"
    # As in the published code: the classifier reads one patch an image, so there are few of them.
    classifier_in_weight_space: ClassVar[bool] = True

    def solve_weights(self, stats: LayerStats, weight: Tensor, bits: int) -> Codes:
        solution = solve(stats.gram, stats.cross, bits, weight, self.algorithm, self.rounds, self.midrise)
        return Codes(solution.codes, solution.scale, solution.offset)

    def calibrate_activations(self, samples: InputSamples, grid: Grid) -> Tensor:
        values = samples.values.flatten()
        return grid.scale_by_alternation(values if grid.low < 0 else values[values > 0])
