"""ONNX files written, read and run, by ONNX's and onnxruntime's own means."""

import collections

import onnx
import onnxruntime
import torch

import bitsplit

onnxruntime.set_default_logger_severity(3)  # errors only


def exported(qmodel, example, path, form="float"):
    bitsplit.export_onnx(qmodel, path, example, form)
    onnx.checker.check_model(str(path), full_check=True)
    return path


def session_outputs(model, x, names=None):
    """What a file, or a model in memory, computes under onnxruntime's default options: its output, or the values of
    `names` wherever they are in the graph."""
    model = model if isinstance(model, onnx.ModelProto) else onnx.load(model)
    given = [constant.name for constant in model.graph.initializer]
    inner = [name for name in dict.fromkeys(names or ()) if name not in given]
    kinds = {value.name: value for value in model.graph.value_info}
    del model.graph.output[1:]
    model.graph.output.extend(kinds[name] for name in inner if name in kinds)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    results = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    if names is None:
        return torch.from_numpy(results[0])
    known = {constant.name: onnx.numpy_helper.to_array(constant) for constant in model.graph.initializer}
    known |= dict(zip([value.name for value in model.graph.output], results, strict=True))
    return [torch.from_numpy(known[name].copy()) for name in names]


def nodes(path):
    """Counts of the operators in a file."""
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def initializer_types(path):
    """Counts of the types of a file's constants."""
    constants = onnx.load(path).graph.initializer
    return collections.Counter(onnx.TensorProto.DataType.Name(constant.data_type) for constant in constants)
