"""ACIQ (Banner, Nahshan, Soudry, "Post training 4-bit quantization of convolutional networks", NeurIPS 2019).

Values are clipped where the expected squared error of a uniform quantizer is least under a prior, and the first two
moments of the quantized weights are put right; both channel by channel.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy.optimize import minimize_scalar
from scipy.special import lambertw
from torch import Tensor

from bitsplit.errors import InputError
from bitsplit.grid import Grid
from bitsplit.methods.base import Codes, Method
from bitsplit.statistics.moments import LayerStats
from bitsplit.statistics.samples import InputSamples


def gauss_error(alpha: float, bits: int) -> float:
    """Expected squared error, in units of σ², of clipping N(0, σ²) at ±α·σ and rounding to 2^M levels."""
    clipping = (alpha**2 + 1) * math.erfc(alpha / math.sqrt(2))
    return clipping + alpha**2 / (3 * 4.0**bits) - math.sqrt(2 / math.pi) * alpha * math.exp(-(alpha**2) / 2)


@lru_cache
def thresholds(prior: str) -> Tensor:
    """Best clipping thresholds for 0 to 9 bits: α*/σ under "gauss", and under "laplace" α*/b = W(3·4^M), where the
    expected squared error in units of b², 2e^(−α) + α²/(3·4^M), is least."""
    if prior == "laplace":
        best = [lambertw(3 * 4.0**bits).real for bits in range(10)]
    else:
        best = [minimize_scalar(gauss_error, bounds=(0.1, 20), args=(bits,)).x for bits in range(10)]
    return torch.tensor(best, dtype=torch.float64)


def clipping_scale(values: Tensor, grid: Grid, prior: str) -> Tensor:
    """Scale (...) that puts the threshold of each row of `values` (..., n) on the last code.

    The prior is centred on the values' mean, the grid on zero: it must reach from zero to |mean| + α*. Unsigned values
    are the positive half of a distribution about zero: they have the threshold of twice the range with one bit more,
    and their spread is that of the positive values. Nothing is clipped beyond the largest value. Rows without any value
    take the scale that all rows together would have.

    prior: "laplace", "gauss", or "best", row by row the one of them that leaves the smaller squared error.
    """
    if prior == "best":
        laplace, gauss = (clipping_scale(values, grid, prior) for prior in ("laplace", "gauss"))
        return torch.where(_error(values, grid, laplace) <= _error(values, grid, gauss), laplace, gauss)
    present = torch.ones_like(values) if grid.signed else (values > 0).to(values.dtype)
    count = present.sum(dim=-1).clamp_min(1)
    mean = (values * present).sum(dim=-1) / count if grid.signed else torch.zeros_like(count)
    deviation = (values - mean.unsqueeze(-1)) * present
    spread = deviation.abs().sum(dim=-1) if prior == "laplace" else deviation.square().sum(dim=-1)
    spread = spread / count if prior == "laplace" else (spread / count).sqrt()
    bits = torch.as_tensor(grid.bits, device=values.device)
    high = torch.as_tensor(grid.high, dtype=values.dtype, device=values.device)
    threshold = mean.abs() + thresholds(prior).to(values)[bits.long() + (0 if grid.signed else 1)] * spread
    scale = torch.minimum(threshold, grid.magnitude(values).amax(dim=-1)) / high.clamp_min(1)
    if values.dim() > 1 and (scale == 0).any():
        everything = clipping_scale(values.flatten(), Grid(round(bits.double().mean().item()), grid.signed), prior)
        scale = torch.where(scale > 0, scale, everything)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _error(values: Tensor, grid: Grid, scale: Tensor) -> Tensor:
    scale = scale.unsqueeze(-1)
    return (grid.reshaped(*scale.shape).quantize(values, scale) * scale - values).square().sum(dim=-1)


def bias_corrected(weight: Tensor, codes: Tensor, scale: Tensor) -> Codes:
    """Codes whose dequantized channels have the mean and the norm about it of `weight` (G, M, N).

    Ŵ ← ξ(Ŵ − E Ŵ) + E W with ξ = ‖W − E W‖ / ‖Ŵ − E Ŵ‖, the paper's ξ(Ŵ + E W − E Ŵ) with the mean restored exactly.
    """
    quantized = codes * scale.unsqueeze(-1)
    mean, quantized_mean = weight.mean(dim=-1), quantized.mean(dim=-1)
    norm = (weight - mean.unsqueeze(-1)).norm(dim=-1)
    quantized_norm = (quantized - quantized_mean.unsqueeze(-1)).norm(dim=-1)
    varies = codes.amax(dim=-1) > codes.amin(dim=-1)  # where not, the norm is 0 or what rounding leaves of it
    ratio = torch.where(varies, norm / quantized_norm.clamp_min(1e-30), 1)
    return Codes(codes.to(torch.int8), ratio * scale, mean - ratio * quantized_mean)


@dataclass(frozen=True)
class ACIQ(Method):
    """Weights and activations clipped per channel under a prior; weights with bias correction.

    The priors are "laplace", "gauss" or "best" of the two: at 8 bits, in the first and last layer, a normal prior clips
    where nothing should be, and at 4 bits a Laplace prior reaches too far for weights.
    """

    weight_prior: str = "best"
    input_prior: str = "best"

    def __post_init__(self) -> None:
        for name in ("weight_prior", "input_prior"):
            if getattr(self, name) not in ("laplace", "gauss", "best"):
                raise InputError(f"method.{name} must be laplace, gauss or best; got {getattr(self, name)!r}")

    def solve_weights(self, stats: LayerStats, weight: Tensor, bits: int) -> Codes:
        return self._clipped(weight, Grid(bits))

    def _clipped(self, weight: Tensor, grid: Grid) -> Codes:
        centred = weight - weight.mean(dim=-1, keepdim=True)  # which the bias correction puts back
        scale = clipping_scale(centred, grid, self.weight_prior)
        codes = grid.reshaped(*scale.shape, 1).quantize(centred, scale.unsqueeze(-1))
        return bias_corrected(weight, codes, scale)

    def calibrate_activations(self, samples: InputSamples, grid: Grid) -> Tensor:
        return clipping_scale(samples.values.T, grid, self.input_prior)
