"""The interface of a quantization method. A method sees statistics and samples; never an image, module or config."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bitsplit.grid import Grid
from bitsplit.stats import InputSamples, LayerStats


@dataclass(frozen=True)
class Codes:
    """Integer weights: codes int8 (G, M, N) and scale (G, M)."""

    codes: Tensor
    scale: Tensor


class Method:
    """Base of all methods; each is a frozen dataclass whose fields are the keys of its YAML file.

    `batch_norm` is the re-estimation that the method's source prescribes, the meaning of `batch_norm.mode=auto`.
    """

    batch_norm: ClassVar[str] = "none"

    @property
    def name(self) -> str:
        """The name of the method's file."""
        return type(self).__module__.rpartition(".")[2]

    def solve_weights(self, stats: LayerStats, weight: Tensor, bits: int) -> Codes:
        """Codes and scales for one layer's weight (G, M, N)."""
        raise NotImplementedError

    def calibrate_activations(self, samples: InputSamples, grid: Grid) -> Tensor:
        """Scale of one layer's input quantizer, from a sample of its values."""
        raise NotImplementedError
