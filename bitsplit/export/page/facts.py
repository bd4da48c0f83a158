"""What there is to say about a quantized network, as numbers: its layers, what they read, its size."""

import collections
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from bitsplit.errors import InputError
from bitsplit.grid import Grid
from bitsplit.layers.inputs import InputQuantizer
from bitsplit.layers.quantized import QuantizedLayer
from bitsplit.settings import FLOAT_BITS

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class InputRange:
    """What one call of a layer reads, in the input's own units.

    low, high: the ends of the grid, beyond which values are clipped; where channels have ends of their own, those of
    the channel with the widest grid, and in narrow_low, narrow_high those of the one with the narrowest. observed: the
    least and the greatest value in calibration, None where it is not known.
    """

    low: float
    high: float
    narrow_low: float
    narrow_high: float
    observed: tuple[float, float] | None

    @classmethod
    def of(cls, quantizer: InputQuantizer) -> "InputRange":
        grid, scale = quantizer.grid.reshaped(-1), quantizer.scale.flatten()
        lows, highs = (scale * grid.low).flatten(), (scale * grid.high).flatten()
        ends = (lows.min(), highs.max(), lows.max(), highs.min())
        return cls(*(end.item() for end in ends), quantizer.observed)

    @property
    def by_channel(self) -> bool:
        return (self.low, self.high) != (self.narrow_low, self.narrow_high)


@dataclass(frozen=True)
class CodeCounts:
    """How often each code from `low` to `high` occurs in a layer. Where rows have offsets, no code stands for zero."""

    low: int
    counts: np.ndarray
    offsets: bool

    @classmethod
    def of(cls, layer: QuantizedLayer) -> "CodeCounts":
        values, end = layer.codes.cpu().numpy().ravel().astype(np.int64), Grid(layer.wbits).high
        # Beyond the symmetric grid go mid-rise codes, and with bits by channel some others.
        low, high = min(-end, int(values.min(initial=0))), max(end, int(values.max(initial=0)))
        return cls(low, np.bincount(values - low, minlength=high - low + 1), layer.offset is not None)

    @property
    def high(self) -> int:
        return self.low + len(self.counts) - 1

    @property
    def zeros(self) -> int | None:
        """Weights that are zero."""
        return None if self.offsets else int(self.counts[-self.low])


@dataclass(frozen=True)
class LayerFacts:
    """A row of the report, its errors, and what the layer itself knows: its codes (None in floating point), and the
    range of each tensor that it reads in a forward."""

    name: str
    shape: tuple[int, ...]
    wbits: int
    abits: int
    relative_error: float
    input_error: float
    note: str
    codes: CodeCounts | None
    inputs: tuple[InputRange, ...]

    @property
    def weights(self) -> int:
        return int(np.prod(self.shape))

    @property
    def error(self) -> float:
        """Noise in the layer's output, about, as a part of its energy: that through the weights and that it reads."""
        return self.relative_error + self.input_error


@dataclass(frozen=True)
class Size:
    """Numbers of a network: its integer weights by their bits, their scales (and offsets, and those of inputs), and
    what stays in floating point; `bytes` if each takes its own bits, and `float_bytes` of the network in float32."""

    codes: dict[int, int]
    scales: int
    rest: int

    @cached_property
    def code_bytes(self) -> float:
        return sum(bits * count for bits, count in self.codes.items()) / 8

    @property
    def bytes(self) -> float:
        return self.code_bytes + _FLOAT_BYTES * (self.scales + self.rest)

    @property
    def float_bytes(self) -> int:
        return _FLOAT_BYTES * (sum(self.codes.values()) + self.rest)

    @classmethod
    def of(cls, qmodel: nn.Module) -> "Size":
        """Values that several modules share count once; buffers that no state dict holds do not count."""
        codes, scales, seen = collections.Counter(), 0, set()
        for module in qmodel.modules():
            if isinstance(module, QuantizedLayer) and module.codes is not None:
                if id(module.layer.weight) not in seen:
                    codes[module.wbits] += module.codes.numel()
                    scales += sum(rows.numel() for rows in (module.scale, module.offset) if rows is not None)
                seen |= {id(value) for value in (module.layer.weight, *module._buffers.values())}
            elif isinstance(module, InputQuantizer):
                scales += sum(value.numel() for value in module._buffers.values())
                seen |= {id(value) for value in module._buffers.values()}
        state = {id(value): value for value in qmodel.state_dict(keep_vars=True).values() if isinstance(value, Tensor)}
        rest = sum(v.numel() for key, v in state.items() if key not in seen and v.is_floating_point())
        return cls(dict(sorted(codes.items())), scales, rest)


def facts_of_layers(qmodel: nn.Module) -> list[LayerFacts]:
    """One a row of `qmodel.report`, in its order. Raises InputError for a network that `quantize` has not made."""
    if not hasattr(qmodel, "report"):
        raise InputError("a page needs a network that bitsplit.quantize or bitsplit.load has returned: it has a report")
    modules = dict(qmodel.named_modules())
    return [_facts_of_layer(row, modules.get(row["name"])) for row in qmodel.report.to_dict("records")]


def _facts_of_layer(row: dict, module: nn.Module | None) -> LayerFacts:
    codes, inputs = None, ()
    if isinstance(module, QuantizedLayer):
        codes = None if module.codes is None else CodeCounts.of(module)
        inputs = tuple(map(InputRange.of, module.input_quantizers))
    errors = float(row["relative_error"]), float(row["input_error"])
    bits = int(row["wbits"]), int(row["abits"])
    return LayerFacts(row["name"], tuple(row["shape"]), *bits, *errors, row["note"], codes, inputs)


def weights_by_bits(layers: list[LayerFacts]) -> dict[int, list[LayerFacts]]:
    """The layers with integers of each bit-width, from few bits to many, and at last those in floating point."""
    groups: dict[int, list[LayerFacts]] = {}
    for layer in layers:
        groups.setdefault(layer.wbits, []).append(layer)
    return dict(sorted(groups.items()))


def usual_bits(layers: list[LayerFacts]) -> tuple[int, int]:
    """The bits (wbits, abits) that most weights have, and that most of them are read with."""
    weights, inputs = collections.Counter(), collections.Counter()
    for layer in layers:
        weights[layer.wbits] += layer.weights
        inputs[layer.abits] += layer.weights
    return tuple(max(counts, key=counts.get, default=FLOAT_BITS) for counts in (weights, inputs))
