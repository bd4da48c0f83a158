"""The integer form: codes are multiplied with codes, and the sums rescaled once for each output channel."""

from typing import NamedTuple

import ml_dtypes
import numpy as np
import onnx_ir as ir

from bitsplit.errors import InputError
from bitsplit.export.onnx.graph import CENTRE, Initializers, constant_of, fits_int4, insert, take_place

_OPERATORS = {"Conv": "ConvInteger", "Gemm": "MatMulInteger", "MatMul": "MatMulInteger"}
_LARGEST_INT8 = 63  # two products with bytes must fit 16 bits: processors without VNNI add them there


class _Read(NamedTuple):
    """Codes that a layer reads, what one is worth, and the byte that stands for zero."""

    codes: ir.Value
    step: ir.Value
    zero: ir.Value


def write_integers(graph: ir.Graph) -> None:
    """Turns every layer that reads codes of one scale by codes into integer arithmetic; the others stay as they are.

    InputError where there is none.
    """
    initializers, found = Initializers(graph), False
    for node in list(graph):
        if node.op_type in _OPERATORS and (weight := _weight_of(node)) and (read := _read_by(node)):
            _write_sums(node, initializers, read, weight)
            found = True
    if not found:
        raise InputError("no layer of this network can run in integers: use form='float'")


def keep_products_exact(graph: ir.Graph) -> None:
    """Writes the bytes that a MatMul reads dequantized so that onnxruntime's products with them are exact.

    It multiplies them by the codes of the input as they are, signed ones in 16 bits: large ones become unsigned. An
    input that is none of codes it would round to bytes of its own: there a Cast and a Mul dequantize the weight.
    """
    initializers = Initializers(graph)
    for node in list(graph):
        weight = _weight_of(node) if node.op_type == "MatMul" else None
        codes = None if weight is None else constant_of(weight.inputs[0])
        if codes is None or codes.dtype != np.int8:
            continue
        name, scale = weight.inputs[0].name, constant_of(weight.inputs[1])
        reads = node.inputs[0].producer()
        if reads is None or reads.op_type != "DequantizeLinear":
            kind = ir.DataType.FLOAT, ir.Shape(codes.shape)
            values = insert(weight, ir.node("Cast", [weight.inputs[0]], {"to": ir.DataType.FLOAT}), *kind)
            column = initializers.put(f"{name}.column", scale[:, None])
            take_place(insert(weight, ir.node("Mul", [values, column]), *kind), weight.outputs[0])
            continue
        if np.abs(codes.astype(int)).max(initial=0) <= _LARGEST_INT8:
            continue
        zero = initializers.put(f"{name}.zero", np.full(scale.shape, CENTRE, np.uint8))
        unsigned = initializers.put(f"{name}.unsigned", (codes.astype(np.int16) + CENTRE).astype(np.uint8))
        weight.resize_inputs(3)
        weight.replace_input_with(0, unsigned)
        weight.replace_input_with(2, zero)


def _weight_of(node: ir.Node) -> ir.Node | None:
    """What dequantizes a layer's weight, if nothing but a transposition comes in between."""
    producer = node.inputs[1].producer()
    if node.op_type == "MatMul" and producer is not None:
        producer = producer.inputs[0].producer() if producer.op_type == "Transpose" else None
    # With two inputs it is a weight's: those of what layers read have a zero point.
    found = producer is not None and producer.op_type == "DequantizeLinear" and len(producer.inputs) == 2
    return producer if found and len(node.inputs) == 2 else None


def _read_by(node: ir.Node) -> _Read | None:
    """What a layer reads, if it is codes of one scale, as they are or with a border of zeros."""
    padding, producer = None, node.inputs[0].producer()
    if producer is not None and _pads_with_zeros(producer):
        padding, producer = producer, producer.inputs[0].producer()
    if producer is None or producer.op_type != "DequantizeLinear" or len(producer.inputs) != 3:
        return None
    read = _Read(*producer.inputs)
    if constant_of(read.step).ndim:
        return None
    if padding is not None:
        inputs = [read.codes, padding.inputs[1], read.zero, *padding.inputs[3:]]
        padded = ir.node("Pad", inputs, dict(padding.attributes))
        read = read._replace(codes=insert(node, padded, ir.DataType.UINT8, padding.outputs[0].shape))
    return read


def _pads_with_zeros(node: ir.Node) -> bool:
    if node.op_type != "Pad" or node.attributes.get_string("mode", "constant") != "constant":
        return False
    value = node.inputs[2] if len(node.inputs) > 2 else None
    return value is None or constant_of(value) is not None and not constant_of(value).any()


def _write_sums(node: ir.Node, initializers: Initializers, read: _Read, weight: ir.Node) -> None:
    """Integer sums of products, and the worth of a code times a code to multiply them with."""
    codes, scale = (constant_of(value) for value in weight.inputs)
    step = constant_of(read.step).astype(np.float64) * scale.astype(np.float64)
    if node.op_type == "Conv":
        attributes, step = dict(node.attributes), step.reshape(-1, 1, 1)
    else:
        attributes, codes = {}, codes.T
    name, shape = weight.inputs[0].name.removesuffix(".codes"), node.outputs[0].shape
    values = [read.codes, *_weight_bytes(node, initializers, f"{name}.integers", codes.astype(np.int16))]
    values.insert(2, read.zero)
    total = insert(node, ir.node(_OPERATORS[node.op_type], values, attributes), ir.DataType.INT32, shape)
    real = insert(node, ir.node("Cast", [total], {"to": ir.DataType.FLOAT}), ir.DataType.FLOAT, shape)
    rescale = initializers.put(f"{name}.rescale", step.astype(np.float32))
    take_place(insert(node, ir.node("Mul", [real, rescale]), ir.DataType.FLOAT, shape), node.outputs[0])


def _weight_bytes(node: ir.Node, initializers: Initializers, name: str, codes: np.ndarray) -> list[ir.Value]:
    """A weight's codes as an integer operator takes them; where they are large, unsigned and with their zero point."""
    if fits_int4(codes):
        small = initializers.put(name, codes.astype(ml_dtypes.int4))
        cast = ir.node("Cast", [small], {"to": ir.DataType.INT8})
        return [insert(node, cast, ir.DataType.INT8, ir.Shape(codes.shape))]
    if np.abs(codes).max(initial=0) <= _LARGEST_INT8:
        return [initializers.put(name, codes.astype(np.int8))]
    zero = initializers.put("weight_zero", np.array(CENTRE, dtype=np.uint8))
    return [initializers.put(name, (codes + CENTRE).astype(np.uint8)), zero]
