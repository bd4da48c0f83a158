"""What can be quantized at all: a module of PyTorch in single or double precision, as it was written."""

import collections
import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from bitsplit.errors import InputError, one_line
from bitsplit.layers.copies import copy_around_tensors
from bitsplit.layers.quantized import QuantizedLayer, wrap_layer
from bitsplit.layout import WEIGHTED, weighted_layers

# What `quantize` gives its result.
_OWN_NAMES = ("report", "seconds", "configuration", "lockstep_images", "summary", "to_html")
_REMEDY = (
    "where its forward asks for their type, isinstance(layer, nn.Conv2d) say, ask in __init__ or for hasattr(layer, "
    "'weight') instead; the layer's input must come first, or as input=, and its attributes must not be scale or codes"
)


def evaluation_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode, in which every layer has a parent; InputError, with the remedy, where none can be made."""
    check_network(model)
    try:
        network = copy.deepcopy(model).eval()
    except (RuntimeError, TypeError) as error:
        raise InputError(
            "the network cannot be copied, as with weight_norm or pruning in place: make these permanent first "
            "(torch.nn.utils.remove_weight_norm, torch.nn.utils.prune.remove), and take locks, open files and the like "
            f"out of it; Python says: {error}"
        ) from error
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # its fast path would read weights past the quantizers of their inputs
        for name, buffer in module._buffers.items():
            if buffer is not None and 0 in buffer.stride():  # an expanded one, into which nothing can be loaded
                module._buffers[name] = buffer.clone(memory_format=torch.contiguous_format)
    # A lone layer needs a parent in which it can be replaced.
    return nn.Sequential(network) if isinstance(network, WEIGHTED) else network


def check_network(model: object) -> None:
    """InputError for what is no module, was compiled, scripted, traced or quantized, or has weights of another type."""
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a scripted or traced network hides its layers: quantize the module that it was made from")
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if "_orig_mod" in module._modules:
            where = f"model.{name}".rstrip(".")
            raise InputError(f"{where} is from torch.compile: put {where}._orig_mod in its place, compile the result")
    if any(isinstance(module, QuantizedLayer) for module in model.modules()):
        raise InputError("the network is quantized already: start from the floating-point one")
    result = all(name in vars(model) for name in ("report", "configuration"))  # of `quantize`, in floating point
    if not result and (taken := [name for name in _OWN_NAMES if hasattr(model, name)]):
        raise InputError(f"the network has a {taken[0]} of its own, a name that the result needs: wrap it in a module")
    for name, module in model.named_modules():
        if isinstance(module, WEIGHTED) and (inside := _weighted_inside(module)):
            raise InputError(f"{name} is a layer with others inside ({inside[0]}), as adapters have: merge them first")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise InputError(f"{name} has no shape yet: run the network on some images first")
        if parameter.is_meta:
            raise InputError(f"{name} is on the device meta and has no values: load the weights first")
        if parameter.is_floating_point() and parameter.dtype not in (torch.float32, torch.float64):
            raise InputError(f"{name} is in {str(parameter.dtype).removeprefix('torch.')}: quantize model.float()")


@torch.no_grad()
def check_wrapped(network: nn.Module, images: Tensor) -> None:
    """InputError where the network computes something else once its layers are wrapped, though nothing is quantized, as
    a forward may that asks them for their type; or where it calls a layer itself instead of what stands in its place.
    """
    wrapped, past = copy_around_tensors(network), collections.Counter()
    for name, layer in weighted_layers(wrapped).items():
        for wrapper in wrap_layer(wrapped, layer):
            for module, number in ((wrapper, -1), (wrapper.layer, 1)):
                module.forward = _counted(module.forward, past, name, number)
    expected = _outputs(network, images)
    try:
        given = _outputs(wrapped, images)
    except Exception as error:  # whatever a forward may make of them
        raise InputError(
            f"the network does not run once its layers are wrapped ({one_line(error)}); {_REMEDY}"
        ) from error
    if len(expected) != len(given) or not all(map(_alike, expected, given)):
        raise InputError(f"the network computes something else once its layers are wrapped; {_REMEDY}")
    if unreached := [name for name, calls in past.items() if calls > 0]:
        raise InputError(
            f"the network calls {unreached[0]} where nothing can take its place: a module that a tuple or a function "
            "keeps; put it into a list or an nn.ModuleList"
        )


def _counted(forward: Callable, calls: collections.Counter, name: str, number: int) -> Callable:
    """`forward`, each call of which adds `number` to `calls[name]`."""

    def counted(*args, **kwargs):
        calls[name] += number
        return forward(*args, **kwargs)

    return counted


def _outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    # Networks that draw get the same numbers each time; `torch.manual_seed` would seed the caller's other devices too.
    devices = [images.device] if images.is_cuda else []
    with torch.random.fork_rng(devices):
        for generator in (torch.default_generator, *(torch.cuda.default_generators[one.index] for one in devices)):
            generator.manual_seed(0)
        return [leaf for leaf in tree_leaves(network(images.clone())) if isinstance(leaf, Tensor)]


def _alike(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    return torch.allclose(one, other, equal_nan=True)


def _weighted_inside(layer: nn.Module) -> list[str]:
    return [name for name, child in layer.named_modules() if child is not layer and isinstance(child, WEIGHTED)]
