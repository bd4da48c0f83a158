"""Activation scales: the quantizers of what each layer reads, calibrated by the method and put in place."""

from dataclasses import dataclass

from torch import nn

from bitsplit.layers.inputs import InputQuantizer
from bitsplit.layers.quantized import QuantizedLayer, put_input_quantizers, wrap_layer
from bitsplit.layout import trailing_dimensions
from bitsplit.plan import Plan
from bitsplit.progress import progress
from bitsplit.settings import FLOAT_BITS
from bitsplit.statistics.batches import CalibrationBatches
from bitsplit.statistics.memory import freed_memory_kept
from bitsplit.statistics.moments import Statistics
from bitsplit.statistics.samples import InputSamples, collect_samples


@dataclass(frozen=True)
class QuantizedInput:
    """What layers read, call by call: a quantizer and a sample of what it reads for each call.

    No quantizer, and a note, where the layers' inputs stay in floating point.
    """

    names: list[str]
    quantizers: list[InputQuantizer]
    samples: list[InputSamples]
    note: str = ""


@freed_memory_kept()
def quantize_inputs(
    network: nn.Module, plan: Plan, statistics: Statistics, batches: CalibrationBatches
) -> list[QuantizedInput]:
    """Gives every layer that shall read integers its quantizers: one for each tensor that it reads in a forward.

    Layers that read the same tensors share them.
    """
    names = [name for name in plan.layers if name in statistics.layers and plan.layers[name].abits != FLOAT_BITS]
    if not names:
        return []
    for name in names:
        if not isinstance(layer := network.get_submodule(name), QuantizedLayer):
            wrap_layer(network, layer)
    layers = {name: network.get_submodule(name).layer for name in names}
    sizes, total = plan.settings.calibration, batches.count(plan.settings.calibration.scale_batches)
    counts = sizes.samples, plan.method.channel_samples
    samples = collect_samples(network, layers, batches.first(total), total, *counts, plan.settings.seed)
    # Channels lie elsewhere in a convolution's input than in a linear layer's: their number of trailing dimensions.
    positions = {name: trailing_dimensions(layer) for name, layer in layers.items()}
    sharing: dict[tuple, list[str]] = {}
    for name in names:
        reads = plan.same_reads(name) if statistics.layers[name].calls else name
        sharing.setdefault((reads, plan.layers[name].abits, positions[name]), []).append(name)
    inputs = []
    for (_, abits, trailing), sharers in progress(sharing.items(), "activation scales"):
        tensors = _tensors_read(
            [samples[name] for name in sharers if name in samples], statistics.layers[sharers[0]].calls
        )
        signed = any(statistics.layers[name].signed for name in sharers) or any(tensor.low < 0 for tensor in tensors)
        quantizers = []
        for tensor in tensors:
            grid = plan.method.input_grid(tensor, abits, signed)
            scale, in_place = plan.method.calibrate_activations(tensor, grid), plan.settings.quantized_shortcuts
            ways = {"in_place": in_place, "observed": (tensor.low, tensor.high)}
            quantizers.append(InputQuantizer(grid, scale, trailing, **ways))
        for name in sharers if quantizers else ():
            put_input_quantizers(network, layers[name].weight, quantizers)
        note = "" if quantizers else "input left in floating point: not called on its images"
        inputs.append(QuantizedInput(sharers, quantizers, tensors, note))
    return inputs


def _tensors_read(samples: list[list[InputSamples]], calls: int) -> list[InputSamples]:
    """The samples of layers that read the same tensors, pooled tensor by tensor; all as one where the layers are called
    more or less often from forward to forward."""
    if samples and all(len(layer) == calls for layer in samples):
        return [InputSamples.pooled(list(tensor)) for tensor in zip(*samples, strict=True)]
    every = [tensor for layer in samples for tensor in layer]
    return [InputSamples.pooled(every)] if every else []
