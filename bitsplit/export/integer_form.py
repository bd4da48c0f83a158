"""One call of a quantized layer as a device computes it: a sum of products of integers, then one multiplication.

The layer's input is step · x with integers x, its weight scale · w + offset with integers w, so that
    y = scale · step · (w ∗ x) + offset · step · (1 ∗ x) + bias
where scale and offset have a number for each row of the weight (`layout`). Both sums are sums of integers, which double
precision holds exactly up to 2^53.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsplit.layers.inputs import InputQuantizer
from bitsplit.layers.quantized import QuantizedLayer

ARITHMETIC = (F.conv2d, F.conv_transpose2d, F.linear)
_OFF_GRID = 1e-3  # in codes; single precision is off by 2^-24 of a code, and codes are less than 256


@dataclass(frozen=True)
class ArithmeticCall:
    """A call of one of `ARITHMETIC`; `rest` and `options` are the geometry, in the order in which it was given."""

    func: Callable
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    rest: tuple
    options: dict

    @classmethod
    def of(cls, func: Callable, args: tuple, kwargs: dict) -> "ArithmeticCall":
        given = {"bias": None} | dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        options = {key: value for key, value in given.items() if key not in ("input", "weight", "bias")}
        return cls(func, given["input"], given["weight"], given["bias"], args[3:], options)

    def output(self) -> Tensor:
        return self.func(self.input, self.weight, self.bias, *self.rest, **self.options)

    def double(self) -> "ArithmeticCall":
        """The same numbers, added up in double precision."""
        bias = None if self.bias is None else self.bias.double()
        return replace(self, input=self.input.double(), weight=self.weight.double(), bias=bias)


@dataclass(frozen=True)
class IntegerForm:
    """sums = w ∗ x, exact, as float64 of the output's shape, and output, scaled in the layer's own precision."""

    sums: Tensor
    output: Tensor


def integer_form(wrapper: QuantizedLayer, quantizer: InputQuantizer | None, call: ArithmeticCall) -> IntegerForm | str:
    """`call` of the layer in `wrapper`, whose input `quantizer` has rounded; the reason where there is no such form."""
    if wrapper.codes is None:
        return "its weights are in floating point"
    if quantizer is None:
        return "its input is in floating point"
    step = _step_of_rows(quantizer, wrapper)
    if step is None:
        return "its input's channels have scales of their own: every product needs its own rescale, inside the sum"
    exact = call.input.double() / quantizer.step
    x = exact.round()
    if (exact - x).abs().max() > _OFF_GRID:
        return "its own forward changes the rounded input before it is used"
    w = wrapper.codes.double()
    sums = replace(call, input=x, weight=w, bias=None).output()
    output = sums.to(call.weight.dtype) * _of_rows(wrapper.scale * step, wrapper, call)
    if wrapper.offset is not None:
        ones = replace(call, input=x, weight=torch.ones_like(w), bias=None).output()
        output = output + ones.to(output.dtype) * _of_rows(wrapper.offset * step, wrapper, call)
    if call.bias is not None:
        output = output + (call.bias if call.func is F.linear else call.bias.reshape(-1, 1, 1))
    return IntegerForm(sums, output)


def _step_of_rows(quantizer: InputQuantizer, wrapper: QuantizedLayer) -> Tensor | None:
    """What a code of the input is worth to each row of the weight, () or (G · M,); None where a row reads several."""
    step = quantizer.step.flatten()
    if len(step) == 1:
        return step.squeeze()
    groups = getattr(wrapper.layer, "groups", 1)
    step = step.reshape(groups, -1)
    if (step != step[:, :1]).any():
        return None
    return step[:, 0].repeat_interleave(len(wrapper.scale) // groups)


def _of_rows(values: Tensor, wrapper: QuantizedLayer, call: ArithmeticCall) -> Tensor:
    """A number of each row, (G · M,), so that it can multiply the call's output."""
    if call.func is F.linear:
        return values
    if not isinstance(wrapper.layer, nn.ConvTranspose2d):
        return values.reshape(-1, 1, 1)
    # A row is an output channel and a place in the kernel, and every output lies at one place of one kernel: the layer
    # itself puts the numbers there, with one input channel of ones a group.
    groups = wrapper.layer.groups
    weight = values.reshape(groups, *call.weight.shape[1:])
    ones = values.new_ones(*call.input.shape[:-3], groups, *call.input.shape[-2:])[:1]
    return replace(call, input=ones, weight=weight, bias=None).output()
