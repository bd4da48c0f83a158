"""The interface of a quantization method. A method sees statistics and samples; never an image, module or config."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitsplit.grid import Grid
from bitsplit.statistics.moments import LayerStats
from bitsplit.statistics.samples import InputSamples


@dataclass(frozen=True)
class Codes:
    """Integer weights: codes int8 (G, M, N), scale (G, M), and where a method shifts whole channels, offset (G, M).

    The weights they stand for are scale · codes + offset.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor | None = None

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """These weights, (G, M, N)."""
        weight = self.codes.to(dtype) * self.scale.unsqueeze(-1)
        return weight if self.offset is None else weight + self.offset.unsqueeze(-1)


@dataclass(frozen=True)
class RefinableWeight:
    """One layer's floating-point weight (G, M, N) and its bit-width; `put` replaces its codes in the network."""

    weight: Tensor
    bits: int
    put: Callable[[Codes], None]


@dataclass(frozen=True)
class RefinableInput:
    """A sample of one layer's input and its grid; `put` replaces its scale in the network."""

    samples: InputSamples
    grid: Grid
    put: Callable[[Tensor], None]


class Method:
    """Base of all methods; each is a frozen dataclass whose fields are the keys of its YAML file.

    `batch_norm` is the re-estimation that the method's source prescribes, the meaning of `batch_norm.mode=auto`;
    `edge_bits` is the bit-width that it prescribes for the first and the last layer, of `bits.first_wbits=auto` and the
    like; with `classifier_in_weight_space` a last layer that is linear is solved for A = I; `channel_samples` values of
    each input channel, at least, come to `calibrate_activations`, where there are as many; `algorithm` is the one of
    `solver/bitsplit.py` that finds the weights, None where the method needs none; `order` is "parallel", where every
    layer is solved on what the floating-point network gives it, or "sequential", where it is solved on what the
    quantized layers before it leave (then `solve_weights` gets C = YX̂ᵀ, with A = X̂X̂ᵀ); with `folded`, activation scales
    by channel are moved into the weights, and one scale a tensor stays; with `shortcuts`, the last layer before an
    addition makes up for what was lost in the other summand too. A method that defines `refine` is
    handed the whole network's scales once they are set.
    """

    batch_norm: ClassVar[str] = "none"
    edge_bits: ClassVar[int] = 8
    classifier_in_weight_space: ClassVar[bool] = False
    channel_samples: ClassVar[int] = 1000
    algorithm: ClassVar[str | None] = None
    order: ClassVar[str] = "parallel"
    folded: ClassVar[bool] = False
    shortcuts: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The name of the method's file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def refinement_images(self) -> int:
        """How many images `refine` runs through the quantized network, counted at every loss."""
        return 0

    def solve_weights(self, stats: LayerStats, weight: Tensor, bits: int) -> Codes:
        """Integer weights in the place of one layer's weight (G, M, N)."""
        raise NotImplementedError

    def input_grid(self, samples: InputSamples, bits: int, signed: bool) -> Grid:
        """The grid of one layer's input: the same for all channels, unless a method allots bits by channel."""
        return Grid(bits, signed)

    def calibrate_activations(self, samples: InputSamples, grid: Grid) -> Tensor:
        """Scale of one layer's input quantizer, () or one for each input channel (C,), from a sample of its values."""
        raise NotImplementedError

    def folded_input(
        self, samples: InputSamples, bits: int, signed: bool, readers: Sequence[tuple[Tensor, int]]
    ) -> tuple[Grid, Tensor]:
        """Grid of one layer's input, and the scale of each input channel (C,) that is moved into the weights which read
        it; readers: these weights (G, M, N) and their bits."""
        grid = self.input_grid(samples, bits, signed)
        return grid, self.calibrate_activations(samples, grid)

    refine: ClassVar[Callable | None] = None
    """`refine(weights, inputs, loss)` changes RefinableWeights and RefinableInputs so that `loss(n)`, the quantized
    network's cross-entropy against the floating-point one's predictions on n calibration images, falls."""
