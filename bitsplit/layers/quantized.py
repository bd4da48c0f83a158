"""Layers with integer weights or quantized inputs, put in place in any network."""

import copy

import torch
from torch import Tensor, nn

from bitsplit.layers.inputs import CallQuantizers, InputQuantizer
from bitsplit.layout import WEIGHTED, grouped, ungrouped
from bitsplit.settings import FLOAT_BITS


class QuantizedLayer(nn.Module):
    """A convolution, transposed or not, or a linear layer with integer weights, a quantized input, or both.

    `layer` is the original module with the dequantized weight, scale · codes + offset, in the place of its parameter,
    so that its own forward, whatever it does, runs unchanged. codes int8 has the weight's shape, scale and offset one
    number for each of its rows (`layout`), (G · M,), in the weight's dtype; they are None where the weights stay in
    floating point (offset also where the method has none), as `input_quantizer` is where the input does. `wbits` is
    what was asked for. Other attributes are those of `layer`.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.register_buffer("codes", None)
        self.register_buffer("scale", None)
        self.register_buffer("offset", None)
        self.layer = layer
        self.wbits = FLOAT_BITS
        self.input_quantizer: InputQuantizer | CallQuantizers | None = None
        self.__dict__["lender"] = None  # the layer, no child of this one, whose weight this one reads too

    def put(self, wbits: int, codes: Tensor, scale: Tensor, offset: Tensor | None = None) -> None:
        """Makes the weights integers of `wbits` bits, or replaces them: codes (G, M, N), scale and offset (G, M)."""
        weight = self.layer.weight
        if self.codes is None:
            del self.layer.weight
            self.layer.register_buffer("weight", torch.empty_like(weight, requires_grad=False), persistent=False)
        self.wbits = wbits
        self.codes = ungrouped(codes.to(torch.int8), self.layer).clone(memory_format=torch.contiguous_format)
        self.scale, self.offset = (
            rows if rows is None else rows.detach().reshape(-1).to(weight.dtype, copy=True) for rows in (scale, offset)
        )
        self._dequantize()

    def _dequantize(self) -> None:
        codes = grouped(self.codes, self.layer).to(self.scale.dtype)
        rows = (*codes.shape[:2], 1)
        weight = codes * self.scale.reshape(rows)
        if self.offset is not None:
            weight = weight + self.offset.reshape(rows)
        with torch.no_grad():
            self.layer.weight.copy_(ungrouped(weight, self.layer))

    @property
    def intact(self) -> bool:
        """Whether the weight is still what its codes stand for."""
        if self.codes is None:
            return True
        again = copy.deepcopy(self)
        again._dequantize()
        return torch.equal(again.layer.weight, self.layer.weight)

    def _load_from_state_dict(self, *arguments) -> None:
        super()._load_from_state_dict(*arguments)
        if self.codes is not None:  # the dequantized weight is not part of the state
            self._dequantize()

    def borrow(self, lender: "QuantizedLayer") -> None:
        """Reads the dequantized weight of `lender` from now on."""
        self.__dict__["lender"] = lender
        self.layer.weight = lender.layer.weight

    def _apply(self, *arguments, **options) -> "QuantizedLayer":
        before = self.layer.weight.dtype
        super()._apply(*arguments, **options)
        if self.lender is not None:  # which stands before it in the network, and has been moved
            self.layer.weight = self.lender.layer.weight
        elif self.codes is not None and before != self.layer.weight.dtype in (torch.float32, torch.float64):
            self._dequantize()  # of the scales as they are now, for files hold codes and scales
        return self

    @property
    def input_quantizers(self) -> list[InputQuantizer]:
        """One for each call, one for all, or none."""
        quantizer = self.input_quantizer
        return [quantizer] if isinstance(quantizer, InputQuantizer) else list(quantizer or [])

    def forward(self, input: Tensor, *args, **kwargs):
        if self.input_quantizer is not None:
            input = self.input_quantizer(input)
        return self.layer(input, *args, **kwargs)

    def extra_repr(self) -> str:
        shape = f"weight={tuple(self.layer.weight.shape)}"
        if self.codes is None:
            return f"{shape} in floating point"
        least, greatest = self.scale.aminmax()
        return f"{shape}, wbits={self.wbits}, scales {least.item():.4g} to {greatest.item():.4g}"

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # a `__deepcopy__` of the layer's would copy the layer alone
                raise
            return getattr(super().__getattr__("layer"), name)


def replace_module(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` wherever `old` stands in the network, in every parent that holds it, in its lists and dictionaries
    too."""
    holders, seen = [vars(parent) for parent in network.modules() if parent is not new], set()
    while holders:
        holder = holders.pop()
        seen.add(id(holder))
        for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            if value is old:
                holder[key] = new
            elif isinstance(value, (dict, list)) and id(value) not in seen:
                holders.append(value)


def wrap_layer(network: nn.Module, layer: nn.Module) -> list[QuantizedLayer]:
    """Replaces `layer`, and the modules that share its weight, by quantized layers, so far in floating point."""
    layers = (module for module in network.modules() if isinstance(module, WEIGHTED))
    twins = [module for module in layers if module.weight is layer.weight]
    wrappers = [QuantizedLayer(twin) for twin in twins]
    for twin, wrapper in zip(twins, wrappers, strict=True):
        replace_module(network, twin, wrapper)
    return wrappers


def put_weights(
    network: nn.Module, layer: nn.Module, wbits: int, codes: Tensor, scale: Tensor, offset: Tensor | None = None
) -> list[QuantizedLayer]:
    """`wrap_layer` with integer weights; modules that share a weight share one dequantized weight."""
    wrappers = wrap_layer(network, layer)
    for wrapper in wrappers:
        wrapper.put(wbits, codes, scale, offset)
    for wrapper in wrappers[1:]:
        wrapper.borrow(wrappers[0])
    return wrappers


def put_input_quantizers(network: nn.Module, weight: Tensor, quantizers: list[InputQuantizer]) -> None:
    """Gives the quantized layers with this weight one quantizer, or one for each of their calls in a forward."""
    quantizer = CallQuantizers(quantizers) if len(quantizers) > 1 else quantizers[0]
    for module in network.modules():
        if isinstance(module, QuantizedLayer) and module.layer.weight is weight:
            module.input_quantizer = quantizer
