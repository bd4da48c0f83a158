"""Nodes and constants of an ONNX graph put in, and in the place of others."""

import numpy as np
import onnx_ir as ir

CENTRE = 128  # code zero of a signed grid in an unsigned byte, the only input that ConvInteger takes


class Initializers:
    """New constants of a graph; equal ones under the same name are kept once."""

    def __init__(self, graph: ir.Graph):
        self._graph, self._known = graph, {}

    def put(self, name: str, array: np.ndarray) -> ir.Value:
        key = name, str(array.dtype), array.shape, array.tobytes()
        if key not in self._known:
            free = name
            while free in self._graph.initializers:
                free += "_"
            tensor = ir.tensor(array, name=free)
            value = ir.Value(name=free, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            self._graph.register_initializer(value)
            self._known[key] = value
        return self._known[key]


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """The values of a constant; None for what is computed."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def fits_int4(codes: np.ndarray) -> bool:
    """Whether all of a weight's codes are from -8, of a grid that has it, to 7."""
    return codes.min(initial=0) >= -8 and codes.max(initial=0) <= 7


def only_reader(node: ir.Node) -> ir.Node | None:
    """The one node that reads the first output of `node`; None where that is read otherwise as well."""
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None


def insert(before: ir.Node, node: ir.Node, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
    """Puts `node` just before another one; its output, which has this type and shape."""
    before.graph.insert_before(before, node)
    value = node.outputs[0]
    value.dtype, value.shape = dtype, shape
    return value


def take_place(new: ir.Value, old: ir.Value) -> None:
    """Gives everything that reads `old` the value `new`, which takes the name too: it may be an output's."""
    name, old.name = old.name, f"{old.name}_replaced"
    new.name = name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
