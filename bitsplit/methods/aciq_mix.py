"""ACIQ-Mix (Banner, Nahshan, Soudry, NeurIPS 2019): ACIQ with the bits of a layer allotted to its channels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitsplit.grid import Grid
from bitsplit.methods.aciq import ACIQ
from bitsplit.methods.base import Codes
from bitsplit.settings import MOST_BITS
from bitsplit.statistics.moments import LayerStats
from bitsplit.statistics.samples import InputSamples


def allotted_bits(sigma: Tensor, bits: int) -> Tensor:
    """Whole bits M_i from 0 to 8 for channels (n,) of spread σ_i: 2^(M_i) ∝ σ_i^(2/3), their mean exactly `bits`."""
    n, spread = len(sigma), sigma.double()  # in single precision the floor of a layer of zeros would be 0
    floor = spread.max().clamp_min(torch.finfo(sigma.dtype).tiny) * 2.0**-40  # beyond any difference that bits can show
    wish = (2 / 3) * torch.log2(spread.clamp_min(floor))
    low, high = -wish.max() - MOST_BITS, MOST_BITS - wish.min()
    for _ in range(100):  # the mean grows with the common offset: bisection
        middle = (low + high) / 2
        enough = (wish + middle).clamp(0, MOST_BITS).sum() >= n * bits
        low, high = (low, middle) if enough else (middle, high)
    share = (wish + high).clamp(0, MOST_BITS)
    whole = share.floor()
    rest = round(n * bits - whole.sum().item())
    order = torch.argsort(share - whole, descending=True, stable=True)
    whole[order[:rest]] += 1  # largest remainders first
    return whole.to(sigma.dtype)


@dataclass(frozen=True)
class ACIQMix(ACIQ):
    """ACIQ with bits by output channel for weights and by input channel for activations, on average those asked for."""

    def solve_weights(self, stats: LayerStats, weight: Tensor, bits: int) -> Codes:
        sigma = weight.std(dim=-1, correction=0)
        return self._clipped(weight, Grid(allotted_bits(sigma.flatten(), bits).view_as(sigma)))

    def input_grid(self, samples: InputSamples, bits: int, signed: bool) -> Grid:
        # The second moment about zero: values that are zero are quantized without any error.
        return Grid(allotted_bits(samples.values.square().mean(dim=0).sqrt(), bits), signed)
