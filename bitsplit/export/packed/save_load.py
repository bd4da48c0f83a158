"""A quantized network as one file of its true size, and back into the floating-point architecture.

The file is a safetensors with a checksum (`sealed`): of quantized layers the tensors of `layers`, of all else
the parameters and buffers by their own names; in the header the layers' bits, the report, and how the network was
quantized.
"""

import os
import re
from pathlib import Path

import pandas
import torch
from torch import Tensor, nn

from bitsplit.errors import InputError, one_line
from bitsplit.export.architecture import (
    architecture_digest,
    float_modules,
    float_state,
    name_prefix,
    quantized_layers,
    unwrapped,
)
from bitsplit.export.attached import attach_views
from bitsplit.export.packed.layers import StoredTensors, layer_facts, layer_tensors, put_layer
from bitsplit.export.packed.sealed import read_sealed, write_sealed
from bitsplit.files import output_file, user_path
from bitsplit.layers.checks import evaluation_copy
from bitsplit.layers.precision import ordinary_tensors


def save(qmodel: nn.Module, path: str | Path) -> None:
    """Writes what `bitsplit.quantize` or `bitsplit.load` has returned to `path`, whole or not at all.

    Codes take their true bit-width; scales, input quantizers, all other parameters and buffers, `qmodel.report`,
    `seconds` and `configuration` are in the same file. Raises InputError for another network, one whose weights were
    changed afterwards, and a path that cannot be written.
    """
    qmodel = unwrapped(qmodel)
    if not isinstance(qmodel, nn.Module) or not hasattr(qmodel, "configuration"):
        raise InputError(
            f"save takes a network that bitsplit.quantize or bitsplit.load has returned; got {type(qmodel).__name__}"
        )
    _check_can_be_stored(qmodel)
    path = output_file(path)
    tensors = {f"{prefix}{key}": tensor for prefix, key, tensor in float_state(qmodel)}
    layers = {}
    for name, layer in quantized_layers(qmodel):
        layers[name], added = layer_facts(layer), layer_tensors(name_prefix(name), layer)
        if taken := added.keys() & tensors.keys():
            raise InputError(f"{min(taken)} is a parameter of the network and a name in the file; give it another name")
        tensors |= added
    facts = {
        "architecture": architecture_digest(qmodel),
        "layers": layers,
        "report": qmodel.report.to_dict("records"),
        "seconds": qmodel.seconds,
        "configuration": qmodel.configuration,
        "lockstep_images": getattr(qmodel, "lockstep_images", None),
    }
    dense = torch.contiguous_format
    write_sealed(
        path,
        {key: t.detach().cpu().clone(memory_format=dense) for key, t in tensors.items()},
        facts,
    )


def _check_can_be_stored(qmodel: nn.Module) -> None:
    """InputError for what a file would lose, or what could not be loaded from it."""
    for name, module in float_modules(qmodel).items():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise InputError(f"{name or 'the network'} has an extra state, for which the file has no place")
    for prefix, key, tensor in float_state(qmodel):
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
            raise InputError(f"{prefix}{key} is in {str(tensor.dtype).removeprefix('torch.')}: save the network before")


@ordinary_tensors()
def load(path: str | Path, model: nn.Module) -> nn.Module:
    """The quantized network in `path`, which `save` has written, in eval mode: it computes the very same numbers.

    model: the floating-point architecture, whatever its weights; it is left as it is, and the result is on its device.
    What has no tensors, activation functions say, is not compared, and must be that of the network that was quantized.
    No code in the file is run. Raises InputError for a file that is damaged, not one of `save`'s, or of a later
    version, and for a model of another architecture.
    """
    path = user_path(os.fspath(path))
    facts, tensors = read_sealed(path)
    network = evaluation_copy(model)
    if facts.get("architecture") != architecture_digest(network):
        raise InputError(
            f"{path} holds a network of another architecture than the model given ({_difference(network, tensors)}); "
            "give the floating-point network that was quantized"
        )
    try:
        _put_state(network, facts["layers"], tensors)
        network.report = pandas.DataFrame([row | {"shape": tuple(row["shape"])} for row in facts["report"]])
        network.seconds, network.configuration = dict(facts["seconds"]), dict(facts["configuration"])
        if facts["lockstep_images"] is not None:
            network.lockstep_images = int(facts["lockstep_images"])
    except Exception as error:  # whatever a file that is whole, but was not made by `save`, may lead to
        raise InputError(f"{path} holds no intact quantized network ({one_line(error)}); save it again") from error
    attach_views(network)
    return network.eval()


@torch.no_grad()
def _put_state(network: nn.Module, layers: dict, tensors: dict[str, Tensor]) -> None:
    """Puts the layers and all other tensors of a file into the floating-point `network`."""
    modules = float_modules(network)
    device = next((tensor.device for _, _, tensor in float_state(network)), torch.device("cpu"))
    stored = StoredTensors(tensors, device)
    for name, facts in layers.items():
        put_layer(network, name_prefix(name), modules[name], facts, stored)
    for prefix, key, tensor in float_state(network):
        tensor.copy_(stored.take(f"{prefix}{key}", tensor.dtype, tensor.shape))
    stored.check_empty()


def _difference(network: nn.Module, tensors: dict[str, Tensor]) -> str:
    """What a file for another architecture has otherwise than `network`, as far as its tensors show it."""
    own = {f"{prefix}{key}": list(tensor.shape) for prefix, key, tensor in float_state(network)}
    there = {key: list(tensor.shape) for key, tensor in tensors.items()}
    there |= {key.removesuffix("_shape"): t.tolist() for key, t in tensors.items() if key.endswith(".weight_shape")}
    for key, shape in own.items():
        if there.get(key, shape) != shape:
            return f"{key} is {shape}, and {there[key]} in the file"
    if lacking := [key for key in own if key not in there]:
        return f"{lacking[0]} is not in the file"
    quantized = re.compile(r"\.?(weight|input)_(packed|shape|scale|offset|bits)\d*$")
    if surplus := [key for key in there if key not in own and not quantized.search(key)]:
        return f"{surplus[0]} is in the file alone"
    return "other layers, strides, paddings or number types"
