"""What torch.onnx sees of a quantized network: codes of inputs are made by the operators of ONNX itself."""

import copy

import torch
from torch import Tensor, nn

from bitsplit.export.onnx.graph import CENTRE
from bitsplit.layers.inputs import CallQuantizers, InputQuantizer
from bitsplit.layers.quantized import QuantizedLayer

OPSET = 21  # the first with 4-bit integers


class _OnnxQuantizer(nn.Module):
    """QuantizeLinear into bytes, Clip to the grid *on the bytes*, DequantizeLinear: codes as `InputQuantizer` has them.

    Bytes hold code + zero point. A Clip before QuantizeLinear would be merged into it, and with it lost, or refused
    (onnxruntime). With `behind` values are held to the ends of the grid after DequantizeLinear.
    """

    def __init__(self, quantizer: InputQuantizer, behind: bool):
        super().__init__()
        grid, self.behind, self.in_place = quantizer.grid, behind, quantizer.in_place
        self.channels = quantizer.scale.dim()  # dimensions from the channels' on; 0 with one scale for all
        zero = CENTRE if grid.signed else grid.zero
        for name, values in {"scale": quantizer.scale, "step": quantizer.step}.items():
            values = values.flatten() if values.dim() else values.clone()
            self.register_buffer(name, values)
            self.register_buffer(f"{name}_zero", torch.full_like(values, zero, dtype=torch.uint8))
        for name, end in {"low": grid.low, "high": grid.high}.items():
            end = end * quantizer.step if behind else torch.tensor(end + zero, dtype=torch.uint8)
            self.register_buffer(name, end)
        self.register_buffer("ratio", quantizer.scale / quantizer.step if quantizer.folded else torch.ones(()))
        self.whole = not behind and (self.low, self.high) == (0, 255)

    def forward(self, x: Tensor) -> Tensor:
        axis = x.dim() - self.channels
        codes = _symbol("QuantizeLinear", x, self.scale, self.scale_zero, dtype=torch.uint8, axis=axis)
        if not self.behind and not self.whole:
            codes = _symbol("Clip", codes, self.low, self.high, dtype=torch.uint8)
        values = _symbol("DequantizeLinear", codes, self.step, self.step_zero, dtype=torch.float32, axis=axis)
        values = values.maximum(self.low).minimum(self.high) if self.behind else values
        if self.in_place:  # torch.export makes new tensors of it, which later readers then read
            x.copy_(values * self.ratio)
        return values


def _symbol(operator: str, x: Tensor, *others: Tensor, dtype: torch.dtype, **attributes: int) -> Tensor:
    """An ONNX operator on `x`, whose shape it keeps."""
    if not others[0].dim():
        attributes = {}  # an axis, with one scale for all
    return torch.onnx.ops.symbolic(operator, (x, *others), attributes, dtype=dtype, shape=x.shape, version=OPSET)


def symbolic_copy(qmodel: nn.Module) -> nn.Module:
    """A copy on the CPU, in eval mode, whose input quantizers are ONNX operators; layers keep their dequantized
    weights."""
    network = copy.deepcopy(qmodel).cpu().eval()
    known = {}
    for layer in [module for module in network.modules() if isinstance(module, QuantizedLayer)]:
        if (quantizer := layer.input_quantizer) is not None:
            # onnxruntime rounds the floating-point weights of a layer that reads DequantizeLinear to 8 bits.
            key = id(quantizer), layer.codes is None, isinstance(layer.layer, nn.Linear)
            if key not in known:
                known[key] = quantizer, _symbolic(quantizer, *key[1:])
            layer.input_quantizer = known[key][1]
    return network


def _symbolic(quantizer: InputQuantizer | CallQuantizers, float_weight: bool, linear: bool) -> nn.Module:
    if isinstance(quantizer, CallQuantizers):
        return CallQuantizers(_symbolic(each, float_weight, linear) for each in quantizer)
    # Clip takes one pair of ends for all channels, and the operators that take more no bytes. What a linear layer reads
    # straight from DequantizeLinear onnxruntime multiplies as bytes, but not with a scale for each channel.
    behind = float_weight or isinstance(quantizer.grid.bits, Tensor) or linear and quantizer.step.dim() > 0
    return _OnnxQuantizer(quantizer, behind)
