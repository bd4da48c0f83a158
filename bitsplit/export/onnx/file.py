"""A quantized network as an ONNX file whose weights are 4- and 8-bit integers."""

import copy
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves_with_path

from bitsplit.errors import InputError, one_line
from bitsplit.export.architecture import quantized_layers, unwrapped
from bitsplit.export.onnx.modules import OPSET, symbolic_copy
from bitsplit.files import output_file, whole_file
from bitsplit.layers.precision import full_precision
from bitsplit.layers.quantized import QuantizedLayer
from bitsplit.progress import progress

if TYPE_CHECKING:
    import onnx_ir as ir

_FORMS = ("float", "integer")
_SHOWN = 200  # characters of torch's reason that a message repeats


@torch.no_grad()
@full_precision()
def export_onnx(qmodel: nn.Module, path: str | Path, example: Tensor | tuple[Tensor, ...], form: str = "float") -> None:
    """Writes what `bitsplit.quantize` has returned as an ONNX file (opset 21) with integer weights.

    example: images (N, C, H, W), or the tuple of all that the network's forward takes; the first dimension of each is
    the batch, which stays free in the file. Outputs in a dict keep their names, those in a list of it with a number
    behind. Weights of 2 to 4 bits are INT4 initializers, of 5 to 8 bits INT8; layers left in floating point stay so.
    Batch-norm behind a quantized layer is folded into its scales and its bias.

    A network with a method `bitsplit_graph` is written as the module and the inputs that it returns for the images: a
    detector as backbone, neck and heads with their raw outputs, for the choice of boxes is more than a graph of
    tensors.

    form: "float" dequantizes codes and runs each layer in floating point, as the simulation does. "integer" multiplies
    the codes themselves (ConvInteger, MatMulInteger) and rescales the sums, in every layer that reads codes of one
    scale and has weights without offsets; others stay in the float form. Both run in onnxruntime as it comes.

    The file is written whole or not at all, after ONNX's own checker has passed it. Takes about 10 seconds; needs the
    extra `onnx`. Raises InputError where the network is not quantized, cannot be followed by torch.export, does not run
    on the example, or has layers in double precision, and for a folder that cannot be written.
    """
    if form not in _FORMS:
        raise InputError(f"form must be one of {', '.join(_FORMS)}; got {form!r}")
    path = output_file(path)
    inputs = _examples(example)
    qmodel = unwrapped(qmodel)
    if callable(getattr(qmodel, "bitsplit_graph", None)):
        qmodel, inputs = qmodel.bitsplit_graph(*inputs)
    network, names = _traceable(qmodel, inputs)
    with onnx_packages(), progress(None, "ONNX export", total=3) as bar:
        import onnx
        import onnx_ir as ir

        model = _traced(network, inputs, names)
        bar.update()
        _write_codes(model, network, form)
        bar.update()
        with whole_file(path) as temporary:
            ir.save(model, temporary)
            try:
                onnx.checker.check_model(str(temporary), full_check=True)
            except onnx.checker.ValidationError as error:
                raise InputError(f"ONNX's checker refuses the file: {one_line(error)[:_SHOWN]}") from error
        bar.update()


def _examples(example: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The network's inputs, on the CPU, of a batch of more than one: torch.export takes 1 for a constant."""
    inputs = example if isinstance(example, tuple) else (example,)
    if not inputs or not all(isinstance(values, Tensor) and values.dim() and len(values) for values in inputs):
        raise InputError("example must be a batch of images (N, C, H, W), or a tuple of tensors with a batch dimension")
    return tuple(torch.cat([values, values]) if len(values) == 1 else values for values in (x.cpu() for x in inputs))


def _traceable(qmodel: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, list[str] | None]:
    """A copy of `qmodel` for the tracer, known to run on the inputs, and the names of its outputs where it has any."""
    layers = [module for module in qmodel.modules() if isinstance(module, QuantizedLayer)]
    if not layers:
        raise InputError("the network has no quantized layer: give what bitsplit.quantize has returned")
    if any(layer.layer.weight.dtype != torch.float32 for layer in layers):
        raise InputError("ONNX quantizes single precision alone: export qmodel.float(), and give a float32 example")
    if changed := [name for name, layer in quantized_layers(qmodel) if not layer.intact]:
        raise InputError(
            f"the weight of {changed[0]} is no longer what its codes stand for; export what quantize has returned"
        )
    network = copy.deepcopy(qmodel).eval()
    try:
        outputs = network(*(x.to(layers[0].layer.weight.device, copy=True) for x in inputs))
    except Exception as error:  # whatever a network may raise
        raise InputError(f"the network does not run on the example: {one_line(error)[:_SHOWN]}") from error
    names = _names(outputs, network) if isinstance(outputs, dict) else []
    return symbolic_copy(network), names or None


def _names(outputs: dict, network: nn.Module) -> list[str]:
    """Of the tensors in `outputs`, as torch.export counts them: by their keys and, in lists, their places."""
    found = [(path, leaf) for path, leaf in tree_leaves_with_path(outputs) if isinstance(leaf, Tensor)]
    names = ["_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path, _ in found]
    taken = [*inspect.signature(network.forward).parameters]
    if twice := [name for place, name in enumerate(names) if name in names[:place] or name in taken]:
        raise InputError(f"the output {twice[0]} has the name of an input or of another output: give it one of its own")
    if len({id(leaf) for _, leaf in found}) < len(found):
        raise InputError("two outputs are one tensor, which ONNX gives one name: leave one of them out")
    return names


def _traced(network: nn.Module, inputs: tuple[Tensor, ...], names: list[str] | None) -> "ir.Model":
    sizes = list(dict.fromkeys(len(x) for x in inputs))  # inputs of one size in the example have it always
    batch = {size: torch.export.Dim(f"batch{place or ''}") for place, size in enumerate(sizes)}
    try:
        with _silenced():
            program = torch.onnx.export(
                network,
                tuple(x.clone() for x in inputs),
                dynamo=True,
                opset_version=OPSET,
                output_names=names,
                dynamic_shapes=tuple({0: batch[len(x)]} for x in inputs),
                optimize=False,  # it merges what must stay apart
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = one_line(error.__cause__ or error)[:_SHOWN]
        raise InputError(
            f"torch.export cannot follow this network; keep it as a packed file, bitsplit.save(qmodel, path): {reason}"
        ) from error
    return program.model


@contextmanager
def _silenced() -> Iterator[None]:
    """No warnings of torch about its own code, and no graphs on the terminal where it gives up: the error says why."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def _write_codes(model: "ir.Model", network: nn.Module, form: str) -> None:
    """Codes in the place of the dequantized weights, in place."""
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import fold_constants

    from bitsplit.export.onnx.integers import keep_products_exact, write_integers
    from bitsplit.export.onnx.weights import WeightWriter

    layers = {
        f"{name}.layer.weight": module
        for name, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, QuantizedLayer) and module.codes is not None
    }
    weights = {model.graph.initializers[name] for name in layers if name in model.graph.initializers}
    # Biases that are not there, and shapes; but no transposed copy of a weight.
    fold_constants(model, should_fold=lambda node: node.op_type == "Shape" or weights.isdisjoint(node.inputs))
    writer = WeightWriter(model.graph)
    for name, layer in layers.items():
        writer.write(name, layer)
    if form == "integer":
        write_integers(model.graph)
    keep_products_exact(model.graph)
    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)  # lines of torch and of the network, as large as its codes
    model.producer_name = "bitsplit"


@contextmanager
def onnx_packages() -> Iterator[None]:
    """InputError, which names the extra, where a package that ONNX files need is missing."""
    try:
        import onnx_ir  # noqa: F401
        import onnxscript  # noqa: F401

        yield
    except ImportError as error:
        raise InputError(f"ONNX files need the extra `onnx`: pip install 'bitsplit[onnx]' ({error})") from error
