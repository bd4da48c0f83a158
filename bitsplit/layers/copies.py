"""Copies of a network that hold the very same tensors."""

import copy

from torch import Tensor, nn


def copy_around_tensors(network: nn.Module) -> nn.Module:
    """A copy whose modules are its own, and whose parameters, buffers and other attributes that are tensors are those
    of `network`: what is written into a weight, both have; what one's forward puts into an attribute, it alone."""
    tensors = (
        value
        for module in network.modules()
        for values in (module._parameters, module._buffers, vars(module))
        for value in values.values()
        if isinstance(value, Tensor)
    )
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
