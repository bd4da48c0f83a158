"""What can be quantized at all: a module of PyTorch in single or double precision, as it was written."""

import copy

import torch
from torch import nn

from bitsplit.errors import InputError
from bitsplit.layers.quantized import QuantizedLayer
from bitsplit.layout import WEIGHTED


def evaluation_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode, in which every layer has a parent; InputError, with the remedy, where none can be made."""
    check_network(model)
    try:
        network = copy.deepcopy(model).eval()
    except RuntimeError as error:
        raise InputError(
            "the network cannot be copied, as with weight_norm or pruning in place: make these permanent first "
            f"(torch.nn.utils.remove_weight_norm, torch.nn.utils.prune.remove); torch says: {error}"
        ) from error
    # A lone layer needs a parent in which it can be replaced.
    return nn.Sequential(network) if isinstance(network, WEIGHTED) else network


def check_network(model: object) -> None:
    """InputError for what is no module, was compiled, scripted, traced or quantized, or has weights of another type."""
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a scripted or traced network hides its layers: quantize the module that it was made from")
    if hasattr(model, "_orig_mod"):
        raise InputError("a network from torch.compile: quantize model._orig_mod, and compile the result")
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any(isinstance(module, QuantizedLayer) for module in model.modules()):
        raise InputError("the network is quantized already: start from the floating-point one")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise InputError(f"{name} is on the device meta and has no values: load the weights first")
        if parameter.is_floating_point() and parameter.dtype not in (torch.float32, torch.float64):
            raise InputError(f"{name} is in {str(parameter.dtype).removeprefix('torch.')}: quantize model.float()")
