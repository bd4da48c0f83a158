"""What every rival is given, and what becomes of its integers: the same inputs, grid and bits for all."""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import bitsplit
from bitsplit import methods, ptq
from bitsplit.layers.inputs import InputQuantizer
from bitsplit.layers.quantized import QuantizedLayer, put_weights
from bitsplit.layout import weighted_layers
from bitsplit.methods.base import Codes
from bitsplit.plan import Plan
from bitsplit.settings import FLOAT_BITS, BatchNorm, Calibration, Settings
from bitsplit.statistics.batches import CalibrationBatches


@dataclass(frozen=True)
class Problem:
    """A floating-point network, each layer's weight bits, and calibration batches, as many as our lock-step pass reads.

    `with_inputs` is the network with its inputs quantized and its weights not: one scale a tensor, symmetric, by
    alternation, on the floating-point network's inputs.
    """

    network: nn.Module
    with_inputs: nn.Module
    wbits: dict[str, int]
    images: list[Tensor]

    @classmethod
    def of(cls, network: nn.Module, images: list[Tensor], wbits: int, abits: int, seed: int) -> "Problem":
        method, none = methods.named("bitsplit"), BatchNorm("none")
        settings = Settings(batch_norm=none, seed=seed).overridden(wbits, abits)
        plan = Plan.of(network, CalibrationBatches(images, network), method, settings)
        # Gram matrices are measured on the way, and are nothing to a rival: as few as can be.
        sizes = replace(Calibration(), gram_batches=1, patches=64)
        scales = replace(settings.overridden(FLOAT_BITS), calibration=sizes)
        with_inputs = bitsplit.quantize(network, images, method=method, settings=scales)
        bits = {name: layer.wbits for name, layer in plan.layers.items()}
        return cls(ptq.evaluation_copy(network), with_inputs, bits, images[: sizes.lockstep_batches])

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The floating-point layers by name."""
        return weighted_layers(self.network)

    def input_quantizer(self, name: str) -> InputQuantizer | None:
        """Of one layer; None where its input stays in floating point."""
        return getattr(self.with_inputs.get_submodule(name), "input_quantizer", None)

    def quantized(self, codes: dict[str, Codes]) -> nn.Module:
        """The network with these integers for weights and the common input quantizers."""
        network = copy.deepcopy(self.with_inputs)
        for name, weights in codes.items():
            layer, bits = network.get_submodule(name), self.wbits[name]
            if isinstance(layer, QuantizedLayer):
                layer.put(bits, weights.codes, weights.scale)
            else:
                put_weights(network, layer, bits, weights.codes, weights.scale)
        return network


def codes_on_grid(weight: Tensor, scale: Tensor, bits: int, name: str) -> Codes:
    """The integers of a rival's weight, of whatever shape, with its scales by output channel.

    Raises ValueError where they are none, or lie beyond -(2^(bits-1)-1) .. 2^(bits-1)-1.
    """
    rows, limit = weight.reshape(1, len(weight), -1), 2 ** (bits - 1) - 1
    scale = scale.expand(len(weight), *[1] * (weight.dim() - 1)).reshape(1, len(weight))
    values = rows / scale.unsqueeze(-1)
    codes = values.round()
    if (values - codes).abs().max() > 1e-2 or codes.abs().max() > limit:
        raise ValueError(f"{name}: weights off the grid of {bits} bits")
    return Codes(codes.to(torch.int8), scale)
