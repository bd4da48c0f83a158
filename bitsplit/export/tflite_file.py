"""A quantized network as a TF-Lite file with integer weights, for the LiteRT interpreter.

LiteRT's converter takes floating-point networks alone. So it gets one with the dequantized weights, and its quantizer
turns these back into integers ("dequantized weight recovery"). The rounding of the inputs stays what it is in the
simulation: operations in floating point.
"""

import copy
import functools
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from bitsplit.errors import InputError, one_line
from bitsplit.files import output_file, whole_file
from bitsplit.layers.inputs import InputQuantizer
from bitsplit.layers.quantized import QuantizedLayer

_OPERATIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_RECOVERY = "dequantized_weight_recovery"
_CODES = 127  # the greatest magnitude, of 8 bits
_OFF_GRID = 1e-3  # in codes; single precision is off by 127 · 2^-23, another scale by 1/127 at least


def export_tflite(qmodel: nn.Module, path: str | os.PathLike, example: Tensor) -> None:
    """Writes `qmodel` to `path` as a TF-Lite file: weights of up to 4 bits as INT4, but for depthwise
    convolutions, and others as INT8, by output channel.

    example: images as the network reads them, (N, C, H, W); the file takes just as many of just this size, and does
    the simulation's arithmetic, in floating point on the weights that it unpacks. Needs the extra `tflite`.

    Raises InputError where the extra is missing, `path` cannot be written, or LiteRT cannot hold the network: integer
    weights of transposed convolutions, weights with offsets, what torch.export cannot follow.
    """
    try:
        import litert_torch
        from ai_edge_quantizer import quantizer
    except ImportError as error:
        raise InputError("writing TF-Lite files needs LiteRT's tools: pip install 'bitsplit[tflite]'") from error
    path = output_file(path)
    network, count = _floating(qmodel)
    with tempfile.TemporaryDirectory() as folder, whole_file(path) as whole:
        floats, integers = Path(folder) / "float.tflite", Path(folder) / "integer.tflite"
        try:
            litert_torch.convert(network, (example,)).export(str(floats))
            recipe, found = _recipe(floats)
            with _exact_recovery():
                tool = quantizer.Quantizer(str(floats), recipe)
                tool.quantize(serialize_to_path=str(integers), enable_progress_bar=False, enable_progress_report=False)
        except Exception as error:  # of a converter in several languages, which has no type of its own
            raise InputError(
                f"LiteRT cannot convert this network ({one_line(error)[:200]}); bitsplit.save holds every network"
            ) from error
        if found < count:
            raise InputError(
                f"LiteRT's converter leaves the weights of {count - found} layers in floating point; "
                "bitsplit.save holds every network"
            )
        whole.write_bytes(integers.read_bytes())


class _Int4Layer(QuantizedLayer):
    """Its class is in the names of LiteRT's tensors, by which the recipe finds its operation."""


class _Int8Layer(QuantizedLayer):
    """Likewise."""


def _floating(qmodel: nn.Module) -> tuple[nn.Module, int]:
    """A copy of the network on the CPU whose arithmetic torch.export can follow, and its number of layers with integer
    weights; InputError where LiteRT cannot hold one of them."""
    network, count = copy.deepcopy(qmodel).eval().cpu(), 0
    for name, module in network.named_modules():
        if isinstance(module, InputQuantizer):
            module.forward = module.rounded  # the compiled rounding shows no operations
        elif isinstance(module, QuantizedLayer) and module.codes is not None:
            if module.offset is not None:
                raise InputError(f"{name}: TF-Lite has no offsets of weights; bitsplit.save has them")
            if isinstance(module.layer, nn.ConvTranspose2d):
                raise InputError(
                    f"{name}: TF-Lite has no scales by place in a transposed kernel; bitsplit.save has them"
                )
            module.__class__ = _Int4Layer if module.wbits <= 4 else _Int8Layer
            count += 1
    return network, count


def _recipe(path: Path) -> tuple[list[dict], int]:
    """Which operations of the file get integer weights again, in the words of LiteRT's quantizer, and of how many
    layers: an operation by its own name, its layer's kind by the name of its weights or else by its own."""
    from ai_edge_litert.tools.flatbuffer_utils import read_model
    from ai_edge_quantizer.utils.tfl_flatbuffer_utils import TFL_OP_CODE_TO_NAME, get_op_scope

    model, recipe, layers = read_model(str(path)), [], set()
    graph = model.subgraphs[0]
    for operation in graph.operators:
        kind = TFL_OP_CODE_TO_NAME.get(model.operatorCodes[operation.opcodeIndex].builtinCode)
        if kind not in _OPERATIONS:
            continue
        name, weights = get_op_scope(operation, graph.tensors), operation.inputs[1]
        marks = re.search(
            rf"{_Int4Layer.__name__}|{_Int8Layer.__name__}", f"{graph.tensors[weights].name.decode()} {name}"
        )
        if marks:
            bits = 4 if marks[0] == _Int4Layer.__name__ and kind != "DEPTHWISE_CONV_2D" else 8  # LiteRT has no other
            recipe.append(_recovery(f"^{re.escape(name)}$", str(kind.value), bits))
            layers.add(weights)
    return recipe, len(layers)


def _recovery(name: str, operation: str, bits: int) -> dict:
    weights = {"num_bits": bits, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"}
    how = {"weight_tensor_config": weights, "compute_precision": "FLOAT", "explicit_dequantize": True}
    return {"regex": name, "operation": operation, "algorithm_key": _RECOVERY, "op_config": how}


@contextmanager
def _exact_recovery() -> Iterator[None]:
    """Inside it, LiteRT's recovery finds every scale, and that of depthwise convolutions too.

    Its own rule, the smallest difference between two magnitudes of an output channel, is wrong for codes 0, 2, 5 and,
    by the rounding of differences, imprecise.
    """
    from ai_edge_quantizer import algorithm_manager, qtyping
    from ai_edge_quantizer.algorithms.uniform_quantize import common_quantize
    from ai_edge_quantizer.algorithms.uniform_quantize import dequantized_weight_recovery as recovery

    algorithm_manager.register_quantized_op(
        _RECOVERY,
        qtyping.TFLOperationName.DEPTHWISE_CONV_2D,
        recovery.init_qsvs,
        recovery.calibrate,
        functools.partial(common_quantize.materialize_fc_conv, recovery.get_tensor_quant_params),
    )
    theirs = recovery.get_zp_scale_from_dequantized_symmetric_weights
    recovery.get_zp_scale_from_dequantized_symmetric_weights = _zeros_and_scales
    try:
        yield
    finally:
        recovery.get_zp_scale_from_dequantized_symmetric_weights = theirs


def _zeros_and_scales(dequant_vals: np.ndarray, quantized_dimension: int, **_) -> tuple[np.ndarray, np.ndarray]:
    """Zero points, which are 0, and scales that broadcast against the dequantized weights: of each channel the largest
    scale of which all its weights are multiples."""
    rows = np.abs(np.moveaxis(dequant_vals, quantized_dimension, 0).astype(np.float64)).reshape(
        dequant_vals.shape[quantized_dimension], -1
    )
    greatest = rows.max(axis=1)
    scales, left = np.where(greatest > 0, greatest, 1), np.flatnonzero(greatest)
    for code in range(1, _CODES + 1):  # of the greatest weight
        multiples = rows[left] * (code / greatest[left, None])
        found = np.abs(multiples - np.rint(multiples)).max(axis=1) < _OFF_GRID
        scales[left[found]] = greatest[left[found]] / code
        left = left[~found]
    shape = [1] * dequant_vals.ndim
    shape[quantized_dimension] = -1
    scales = scales.astype(np.float32).reshape(shape)
    return np.zeros_like(scales, dtype=np.int32), scales
