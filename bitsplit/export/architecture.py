"""A network without its quantization: the modules and tensors of the floating-point architecture by their own names."""

import hashlib
from collections.abc import Iterator

from torch import Tensor, nn

from bitsplit.layers.quantized import QuantizedLayer
from bitsplit.layout import WEIGHTED

# What decides on a module's arithmetic and shows in no shape.
_OF_CONVOLUTIONS = ("kernel_size", "stride", "padding", "output_padding", "dilation", "groups", "padding_mode")
_GEOMETRY = (*_OF_CONVOLUTIONS, "eps", "num_groups", "num_heads", "batch_first")


def float_modules(network: nn.Module) -> dict[str, nn.Module]:
    """The modules of the floating-point architecture by name, each once; those of a quantized network and of the one
    that it was made from have the same names."""
    return {name: module for name, module, first in _walk("", network, {}) if name == first}


def float_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and the buffers of its state; not the weights that are made of codes."""
    state = module._parameters | {
        name: buffer for name, buffer in module._buffers.items() if name not in module._non_persistent_buffers_set
    }
    return {name: tensor for name, tensor in state.items() if tensor is not None}


def quantized_layers(network: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """Quantized layers by the names of the architecture; of those that share a weight the first."""
    wrappers = {id(module.layer): module for module in network.modules() if isinstance(module, QuantizedLayer)}
    weights = set()
    for name, module in float_modules(network).items():
        if id(module) in wrappers and id(module.weight) not in weights:
            weights.add(id(module.weight))
            yield name, wrappers[id(module)]


def float_state(network: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """(prefix of its name, its name in the module, tensor) of all parameters and buffers but the quantization's."""
    for name, module in float_modules(network).items():
        for key, tensor in float_tensors(module).items():
            yield name_prefix(name), key, tensor


def unwrapped(qmodel: nn.Module) -> nn.Module:
    """The network in what `torch.compile` has made of it."""
    return getattr(qmodel, "_orig_mod", qmodel)


def name_prefix(name: str) -> str:
    """What the names in a module of this name begin with."""
    return f"{name}." if name else ""


def architecture_digest(network: nn.Module) -> str:
    """SHA-256 of the floating-point architecture: names, shapes and types of all tensors, geometry of the layers, and
    what is shared. The same for a quantized network and the one that it was made from."""
    lines, weights = [], {}
    for name, module, first in _walk("", network, {}):
        if name != first:
            lines.append(f"{name} is {first}")
            continue
        # A module of the user's may call a function so, which has no value that another process could compare.
        own = {key: vars(module)[key] for key in _GEOMETRY if key in vars(module)}
        lines += [f"{name}.{key}: {value}" for key, value in own.items() if _is_plain_value(value)]
        tensors = float_tensors(module)
        if isinstance(module, WEIGHTED) and "weight" in module._parameters | module._buffers:
            tensors["weight"] = module.weight
            lines.append(f"{name} has the weight of {weights.setdefault(id(module.weight), name)}")
        lines += [f"{name}.{key}: {tensor.dtype} {tuple(tensor.shape)}" for key, tensor in tensors.items()]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _is_plain_value(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain_value, value))
    return value is None or isinstance(value, (int, float, str))


def _walk(name: str, module: nn.Module, seen: dict[int, str]) -> Iterator[tuple[str, nn.Module, str]]:
    """Name, module and the module's first name, of every place at which a module stands; what is in it once."""
    module = module.layer if isinstance(module, QuantizedLayer) else module
    first = seen.setdefault(id(module), name)
    yield name, module, first
    if first == name:
        for key, child in module._modules.items():
            if child is not None:
                yield from _walk(name_prefix(name) + key, child, seen)
