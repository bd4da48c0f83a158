"""Bit-split beyond the paper: the lattice solver on what the quantized layers before a layer leave, with half of their
error made up for, and activation scales by channel that are moved into the weights."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from bitsplit.errors import InputError
from bitsplit.grid import Grid
from bitsplit.layout import by_column
from bitsplit.methods.base import Codes
from bitsplit.methods.bitsplit import BitSplit
from bitsplit.methods.bitsplit_ecaq import BitSplitECAQ
from bitsplit.settings import FLOAT_BITS
from bitsplit.statistics.moments import LayerStats
from bitsplit.statistics.paired import compensating
from bitsplit.statistics.samples import InputSamples

_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # e, of a channel's own scale
_SOLVED = 0.25  # about what the solver leaves of the error that rounding the weights would make
_ZERO_POINTS = 16  # that are tried, about
_FEW = (1_000, 64)  # values of each channel, and channels, that they are tried on
_ROWS = 64  # of a weight, at most, that the scales by channel are tried on


@dataclass(frozen=True)
class BitSplitPlus(BitSplitECAQ):
    """Weights: minimise ‖Wλ(X − X̂) + WX̂ − αqX̂‖², X̂ the input that the layer will really read, by the lattice solver.

    `compensation` is λ, the share of the error before the layer that its weights make up for; `damping`, a part of A's
    mean diagonal, holds directions that few images show to the weights. Inputs of both signs have the zero point of
    least squared error, or with `symmetric_inputs` none, for hardware that knows none.
    """

    compensation: float = 0.5
    damping: float = 0.1
    symmetric_inputs: bool = False

    algorithm: ClassVar[str] = "lattice"
    shortcuts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, most in (("compensation", 1.0), ("damping", math.inf)):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not 0 <= value <= most:
                raise InputError(f"{name} must be a number from 0 to {most}; got {value!r}")

    def solve_weights(self, stats: LayerStats, weight: Tensor, bits: int) -> Codes:
        return super().solve_weights(compensating(stats, weight, self.compensation, self.damping), weight, bits)

    def input_grid(self, samples: InputSamples, bits: int, signed: bool) -> Grid:
        few = _few(samples)
        return self._least_error(few, bits, signed, lambda grid: grid.scale_by_alternation(few.values.flatten()))

    def folded_input(
        self, samples: InputSamples, bits: int, signed: bool, readers: Sequence[tuple[Tensor, int]]
    ) -> tuple[Grid, Tensor]:
        """The grid of least squared error under a scale for each channel, and scales s_c^e · s^(1−e) between the
        layer's (e = 0) and each channel's own (e = 1), with the e that costs the layers' outputs least: finer inputs
        mean weights of a wider range. What one half of the sample chooses is judged on the other: values beyond all of
        a channel's sample are clipped, which costs most where there are few, and which the sample itself never shows.
        """
        few, values, half = _few(samples), samples.values, len(samples.values) // 2
        grid = self._least_error(few, bits, signed, lambda grid: self.calibrate_activations(few, grid))
        first, held_back = (replace(samples, values=part) for part in (values[: max(1, half)], values[half:]))
        weights = [
            (
                weight[:, :: -(-weight.shape[1] // _ROWS)],
                None if bits == FLOAT_BITS else Grid(bits, midrise=self.midrise),
                weight.shape[1],
            )
            for weight, bits in readers
        ]

        def scales(part: InputSamples) -> list[Tensor]:
            layer, own = BitSplit.calibrate_activations(self, part, grid), self.calibrate_activations(part, grid)
            return [own**share * layer ** (1 - share) for share in _SHARES]

        errors = [sum(_output_error(held_back, grid, scale, *reader) for reader in weights) for scale in scales(first)]
        return grid, scales(samples)[errors.index(min(errors))]

    def _least_error(self, samples: InputSamples, bits: int, signed: bool, scale: Callable[[Grid], Tensor]) -> Grid:
        """With a zero point where the input has both signs, the one of least squared error with each grid's `scale`."""
        if not signed or self.symmetric_inputs:
            return Grid(bits, signed)
        step = max(1, 2**bits // _ZERO_POINTS)
        grids = [Grid(bits), *(Grid(bits, False, zero) for zero in range(step, 2**bits - 1, step))]
        return min(grids, key=lambda grid: _squared_error(grid, samples.values, scale(grid)))


def _few(samples: InputSamples) -> InputSamples:
    """Some values of some channels, enough to tell grids apart."""
    rows, columns = (max(1, have // some) for have, some in zip(samples.values.shape, _FEW, strict=True))
    return replace(samples, values=samples.values[::rows, ::columns])


def _output_error(
    samples: InputSamples, grid: Grid, scale: Tensor, weight: Tensor, weights: Grid | None, rows: int
) -> float:
    """About what inputs rounded with `scale` (C,) and weights rounded after the scales are moved into them, unless they
    stay in floating point, cost the outputs of `rows` rows, of which `weight` holds some."""
    values, ratio = samples.values, scale / scale.mean()
    by_inputs = (grid.quantize(values, scale) * scale - values).square().mean(dim=0)
    error = _channel_power(weight, len(scale)) @ by_inputs
    if weights is not None:
        moved = weight * by_column(ratio, weight)
        step = weights.scale_by_alternation(moved).unsqueeze(-1)
        rounded = weights.quantize(moved, step) * step
        by_weights = _SOLVED * _channel_power(rounded - moved, len(scale)) / ratio.square()
        error = by_weights @ values.square().mean(dim=0) + error
    return error.item() * rows / weight.shape[1]


def _channel_power(weight: Tensor, channels: int) -> Tensor:
    """Squares of a weight (G, M, N) summed by input channel, (C,)."""
    return weight.square().sum(dim=1).reshape(channels, -1).sum(dim=1)


def _squared_error(grid: Grid, values: Tensor, scale: Tensor) -> float:
    return (grid.quantize(values, scale) * scale - values).square().sum().item()
