"""TensorRT's calibration (Migacz, "8-bit inference with TensorRT", GTC 2017): clip where the least information is lost.

Weights are TF-Lite's. Activations, per layer: of all clipping thresholds T on a histogram of |x|, the one whose
quantized distribution Q is nearest to the clipped distribution P in Kullback-Leibler divergence.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitsplit.grid import Grid
from bitsplit.methods.tflite import TFLite
from bitsplit.statistics.samples import InputSamples


@dataclass(frozen=True)
class TensorRT(TFLite):
    """Weights per output channel by their maximum; activations per layer by least KL(P‖Q) over `bins` of |x|."""

    bins: int = 2048

    def calibrate_activations(self, samples: InputSamples, grid: Grid) -> Tensor:
        values = samples.values.flatten()
        magnitude = values.abs() if grid.signed else values[values > 0]
        largest = magnitude.max().item() if len(magnitude) else 0.0
        if largest == 0:
            return values.new_ones(())
        counts = torch.histc(magnitude.float(), self.bins, 0, largest).double().cpu().numpy()
        bins_below = least_divergent(counts, levels=grid.high + 1)
        return values.new_tensor((bins_below + 0.5) * largest / self.bins / grid.high)


def least_divergent(counts: np.ndarray, levels: int) -> int:
    """Number of bins i, from `levels` to all, whose KL(P‖Q) is least.

    P: the first i bins, all later counts added to the last of them. Q: those bins, without the later counts, merged
    into `levels` groups of equal width (to a bin), each spread evenly over its bins that are not empty. An outlier in a
    bin that Q leaves empty would make the divergence infinite; such a threshold is never taken unless all are. Nor is
    one that leaves values in the last bin alone, where P and Q agree whatever is clipped.
    """
    total = counts.sum()
    best, bins_below = np.inf, len(counts)
    # Without empty bins, groups of one bin: Q equals P, but for the outliers.
    below = np.concatenate([[0.0], np.cumsum(counts)])
    occupied = np.concatenate([[0], np.cumsum(counts > 0)])
    for i in range(min(levels, len(counts)), len(counts) + 1):
        edges = np.arange(levels + 1) * i // levels
        mass = np.diff(below[edges])
        bins = np.diff(occupied[edges])
        spread = np.repeat(mass / np.maximum(bins, 1), np.diff(edges))
        reference = counts[:i].copy()
        reference[-1] += total - below[i]
        present = reference > 0
        q = np.where(counts[:i] > 0, spread, 0)[present]
        if occupied[i - 1] == 0 or (q == 0).any():
            continue
        p = reference[present] / total
        divergence = (p * np.log(p / (q / below[i]))).sum()
        if divergence < best:
            best, bins_below = divergence, i
    return bins_below
