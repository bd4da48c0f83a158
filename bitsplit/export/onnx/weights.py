"""From a traced network with dequantized weights to integers in the graph, with batch-norm folded."""

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import onnx_ir as ir
from torch import nn

from bitsplit.export.onnx.graph import Initializers, constant_of, fits_int4, insert, only_reader, take_place
from bitsplit.layers.quantized import QuantizedLayer
from bitsplit.layout import grouped


@dataclass(frozen=True)
class _Weight:
    """scale · codes + offset, as in `QuantizedLayer`.

    scale and offset are (R,) where rows are the weight's first dimension; for a transposed convolution (G, C_out/G, kh,
    kw), one for each `block` places of the first dimension.
    """

    name: str
    codes: np.ndarray
    scale: np.ndarray
    offset: np.ndarray | None
    block: int

    @classmethod
    def of(cls, name: str, layer: QuantizedLayer) -> "_Weight":
        codes, block, shape = layer.codes.numpy(), 0, (-1,)
        if isinstance(layer.layer, nn.ConvTranspose2d):
            groups, _, block = grouped(layer.codes, layer.layer).shape
            shape = groups, *codes.shape[1:]
        scale, offset = (
            None if rows is None else rows.double().reshape(shape).numpy() for rows in (layer.scale, layer.offset)
        )
        return cls(name, codes, scale, offset, block)

    def times(self, factors: np.ndarray) -> "_Weight":
        """Every row multiplied by a factor of its own, (R,). Scales stay positive: a negative factor turns the codes,
        which on a symmetric grid costs nothing; on one with offsets, q becomes −1 − q, for there is no code for −q of
        the least."""
        signs = np.sign(factors).astype(np.int8).reshape(-1, *[1] * (self.codes.ndim - 1))
        scale = self.scale * np.abs(factors)
        codes, offset = self.codes * signs, None
        if self.offset is not None:
            codes = np.where(signs < 0, -1 - self.codes, codes)
            offset = np.where(factors < 0, (self.scale - self.offset) * np.abs(factors), self.offset * factors)
        return replace(self, codes=codes, scale=np.where(scale > 0, scale, 1), offset=offset)


class WeightWriter:
    """Writes the integers of layers into one graph."""

    def __init__(self, graph: ir.Graph):
        self._graph, self._initializers = graph, Initializers(graph)

    def write(self, name: str, layer: QuantizedLayer) -> None:
        """Codes for the initializer `name`, the layer's dequantized weight, wherever it is used."""
        if (value := self._graph.initializers.get(name)) is None:  # of a layer that was not called
            return
        weight = _Weight.of(name.removesuffix(".layer.weight"), layer)
        for node, index in list(value.uses()):
            if index == 1 and _rows_are_outputs(node):
                self._write_layer(node, weight)
            else:
                node.replace_input_with(index, self._dequantized(node, weight))

    def _write_layer(self, node: ir.Node, weight: _Weight) -> None:
        """The layer without its bias, which comes as an Add behind it, batch-norm folded into both.

        onnxruntime rounds the bias *in* a convolution of dequantized values to 32-bit integers, at the cost of points
        of accuracy. A convolution that anything reads has an Add of zeros too: with a quantizer straight behind it
        onnxruntime makes an integer operator of both, which knows no scales by channel.
        """
        bias, last = np.zeros(weight.codes.shape[0]), node
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            bias = constant_of(node.inputs[2]).astype(np.float64)
        if (norm := only_reader(node)) is not None and _is_constant_norm(norm):
            gamma, beta, mean, variance = (constant_of(value).astype(np.float64) for value in norm.inputs[1:])
            gains = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
            weight, bias, last = weight.times(gains), (bias - mean) * gains + beta, norm
        values = [node.inputs[0], self._dequantized(node, weight)]
        shape = node.outputs[0].shape
        new = insert(node, ir.node(node.op_type, values, dict(node.attributes)), ir.DataType.FLOAT, shape)
        if bias.any() or node.op_type == "Conv" and any(last.outputs[0].uses()):
            bias = bias.astype(np.float32).reshape((-1, 1, 1) if node.op_type == "Conv" else (-1,))
            constant = self._initializers.put(f"{weight.name}.bias", bias)
            new = insert(node, ir.node("Add", [new, constant]), ir.DataType.FLOAT, shape)
        take_place(new, last.outputs[0])

    def _dequantized(self, node: ir.Node, weight: _Weight) -> ir.Value:
        """The weight in floating point, made of its integers just before `node`."""
        codes = weight.codes.astype(ml_dtypes.int4) if fits_int4(weight.codes) else weight.codes
        values = [
            self._initializers.put(f"{weight.name}.codes", codes),
            self._initializers.put(f"{weight.name}.scale", weight.scale.astype(np.float32)),
        ]
        attributes = {"axis": 0} | ({"block_size": weight.block} if weight.block else {})
        kind = ir.DataType.FLOAT, ir.Shape(codes.shape)
        value = insert(node, ir.node("DequantizeLinear", values, attributes), *kind)
        if weight.offset is None:
            return value
        offset = weight.offset.reshape(*weight.offset.shape, *[1] * (codes.ndim - weight.offset.ndim))
        offset = np.repeat(offset, len(codes) // len(offset), 0) if 1 < len(offset) < len(codes) else offset
        constant = self._initializers.put(f"{weight.name}.offset", offset.astype(np.float32))
        return insert(node, ir.node("Add", [value, constant]), *kind)


def _is_constant_norm(node: ir.Node) -> bool:
    """Whether it is a batch-norm of constants; a gain may be computed, of a class say."""
    return node.op_type == "BatchNormalization" and all(constant_of(value) is not None for value in node.inputs[1:])


def _rows_are_outputs(node: ir.Node) -> bool:
    """Whether the rows of the second input, as they stand, are the output's channels; and a bias is a constant."""
    rows = node.op_type == "Conv" or node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    return rows and all(value is None or constant_of(value) is not None for value in node.inputs[2:])
