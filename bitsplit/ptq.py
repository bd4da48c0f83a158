"""Post-training quantization of a whole network: the order of steps.

parallel, as in the published code:
    plan → statistics → weights → activation scales → [batch-norm → refinement of all scales] → batch-norm → report
sequential: plan → [at each layer: activation scale → statistics → weights] → batch-norm → report
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import pandas
from torch import nn

from bitsplit import methods
from bitsplit.errors import InputError
from bitsplit.export.attached import attach_views
from bitsplit.layers.batch_norm import (
    FloatNorms,
    measure_float_norms,
    norms_in_training,
    refit_batch_norm,
)
from bitsplit.layers.checks import evaluation_copy
from bitsplit.layers.precision import full_precision
from bitsplit.layers.quantized import QuantizedLayer, put_weights
from bitsplit.layout import grouped_weight, weighted_layers
from bitsplit.methods.base import Codes, Method, RefinableInput, RefinableWeight
from bitsplit.plan import Plan, check_names, decided
from bitsplit.progress import progress, timed
from bitsplit.settings import FLOAT_BITS, BatchNorm, Settings
from bitsplit.solver.threads import check_process
from bitsplit.statistics.batches import CalibrationBatches
from bitsplit.statistics.loss import CalibrationLoss
from bitsplit.statistics.memory import freed_memory_kept, return_freed
from bitsplit.statistics.moments import LayerStats, Statistics, collect_statistics
from bitsplit.statistics.reads import LayerReads
from bitsplit.steps.input_scales import QuantizedInput, quantize_inputs
from bitsplit.steps.layer_report import float_report, layer_report, weight_errors
from bitsplit.steps.sequential import quantize_sequentially


@dataclass(frozen=True)
class Weights:
    """Integer weights by layer: what networks have in common that differ in their activations alone."""

    codes: dict[str, Codes]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Known:
    """Values from an earlier quantization of the same network on the same images, to be used again; none is changed.

    `weights` belong to one method and its weight settings, `float_norms` to one batch-norm setting, `statistics` to one
    `Settings.calibration` and seed.
    """

    reads: dict[str, LayerReads] | None = None
    statistics: Statistics | None = None
    float_norms: FloatNorms | None = None
    weights: Weights | None = None


@full_precision()
def quantize(
    model: nn.Module,
    calibration: Iterable,
    wbits: int | None = None,
    abits: int | None = None,
    method: str | Method = "bitsplit",
    bits: Mapping[str, tuple[int, int]] | None = None,
    seed: int | None = None,
    settings: Settings | None = None,
    known: Known | None = None,
) -> nn.Module:
    """A quantized copy of `model`, without labels and without back-propagation; everything given is left as it is.

    model: any module of Conv2d, ConvTranspose2d and Linear layers, subclasses included. calibration: an iterable of
    image batches (N, C, H, W), or of (images, anything); best a list or a DataLoader of about 1,000 images or more from
    the training set, in a random order: where there are more than are needed, the first are taken. wbits, abits: 2 to
    8, or 32 for floating point; where None, the settings', which are 4. method: a name from `bitsplit.methods.names()`,
    or a method object with settings of its own. bits: (wbits, abits) by patterns over layer names, for layers that
    shall have others. seed: fixes every random choice, a loader's order and augmentations too; where None, the
    settings', 0. settings: everything else (bits of the first and last layer, calibration sizes, batch-norm
    re-estimation). known: what an earlier call has computed.

    Returns a module in eval mode. Its `report` is a pandas.DataFrame, one row a layer: name, shape, wbits, abits,
    signed (input range), relative_error (‖y − ŷ‖²/‖y‖² of the output through the weights, on what the layer reads in
    calibration; in the sequential order what they make up for is a change too), input_error (‖x − x̂‖²/‖x‖²) and a note
    on every weight left in floating point. `seconds` has the time of each phase, `configuration` the method and the
    settings with all that was "auto" decided; `summary()` says it in a line, and `to_html(path, metrics=None)` writes a
    page about the network.

    Raises InputError (a ValueError) for a bit-width or method there is not, a pattern that fits no layer, empty
    calibration, or NaN in the network.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    >>> qmodel = quantize(model, [torch.rand(8, 3, 8, 8)], wbits=4, abits=4)
    >>> qmodel.report[["name", "wbits", "abits"]].values.tolist()
    [['0', 8, 32], ['2', 4, 4], ['4', 8, 8]]

    Other bit-widths for some layers, and another method:

    >>> qmodel = quantize(model, [torch.rand(8, 3, 8, 8)], wbits=4, abits=4, method="tflite", bits={"4": (4, 6)})
    >>> qmodel.report[["name", "wbits", "abits"]].values.tolist()
    [['0', 8, 32], ['2', 4, 4], ['4', 4, 6]]
    """
    check_process()
    settings = _checked(settings or Settings(), Settings, "settings").overridden(wbits, abits, bits, seed)
    method = methods.named(method) if isinstance(method, str) else _checked(method, Method, "method")
    known = known or Known()
    network = evaluation_copy(model)
    sizes = settings.calibration.batch_size, settings.most_batches
    batches = CalibrationBatches(calibration, network, *sizes, settings.seed)
    if settings.floating_point:
        check_names(network, settings.layers)
        network.report, network.seconds = float_report(network), {}
        network.configuration = _configuration(method, decided(settings, method, batches.whole))
        attach_views(network)
        return network

    plan = Plan.of(network, batches, method, settings, known.reads)
    quantize_layers = _in_sequence if method.order == "sequential" else _in_parallel
    network.report, network.seconds = quantize_layers(model, network, plan, batches, known)
    network.configuration = _configuration(method, plan.settings)
    attach_views(network)
    return network.eval()


def _in_parallel(
    model: nn.Module, network: nn.Module, plan: Plan, batches: CalibrationBatches, known: Known
) -> tuple[pandas.DataFrame, dict[str, float]]:
    """Every layer against what the floating-point network gives it; returns the report and the seconds."""
    statistics = known.statistics or measure_statistics(network, plan, batches)
    norms = known.float_norms or measure_norms(network, plan, batches)
    weights = known.weights or quantize_weights(network, plan, statistics)
    seconds = {"statistics": statistics.seconds, **weights.seconds}
    layers = apply_weights(network, plan, weights)
    if not plan.method.refine:
        errors = weight_errors(network, plan, statistics)
        statistics = statistics.without_moments()  # VGG-16's take 3 GB, and so does the forward of a whole batch
        return_freed()
    with timed(seconds, "activations"), _norms_as_refitted(network, plan.settings.batch_norm, batches):
        inputs = quantize_inputs(network, plan, statistics, batches)
    if plan.method.refine:
        with timed(seconds, "refinement"):
            refit(network, plan, batches, norms)
            refine(model, network, plan, layers, inputs, batches)
        errors = weight_errors(network, plan, statistics)
    with timed(seconds, "batch_norm"):
        refit(network, plan, batches, norms)
    return layer_report(network, plan, statistics, inputs, errors), seconds


def _in_sequence(
    model: nn.Module, network: nn.Module, plan: Plan, batches: CalibrationBatches, known: Known
) -> tuple[pandas.DataFrame, dict[str, float]]:
    """Every layer against what the quantized layers before it give it; returns the report and the seconds."""
    norms, seconds = known.float_norms or measure_norms(network, plan, batches), {}
    with timed(seconds, "lockstep"):
        result = quantize_sequentially(evaluation_copy(model), network, plan, batches)
    with timed(seconds, "batch_norm"):
        refit(network, plan, batches, norms)
    network.lockstep_images = result.images
    return layer_report(network, plan, result.statistics, result.inputs, result.errors), seconds


@freed_memory_kept()
def measure_statistics(network: nn.Module, plan: Plan, batches: CalibrationBatches) -> Statistics:
    """The second moments of what every layer reads in floating point."""
    sizes = plan.settings.calibration
    total = batches.count(sizes.gram_batches)
    return collect_statistics(network, plan.reads, batches.first(total), total, sizes.patches, plan.settings.seed)


@freed_memory_kept()
def measure_norms(network: nn.Module, plan: Plan, batches: CalibrationBatches) -> FloatNorms | None:
    """What batch-norm re-estimation has to know of the floating-point network."""
    total = batches.count(plan.settings.batch_norm.batches)
    return measure_float_norms(network, plan.settings.batch_norm, batches.first(total), total)


def quantize_weights(network: nn.Module, plan: Plan, statistics: Statistics) -> Weights:
    """The method's integers for every layer that shall have some; leaves `network` alone."""
    codes, seconds, layers = {}, {}, weighted_layers(network)
    with timed(seconds, "weights"):
        for name, layer in progress(plan.layers.items(), "weights"):
            if name not in statistics.layers or layer.wbits == FLOAT_BITS:
                continue
            stats = statistics.layers[name].stats
            weight = grouped_weight(layers[name]).to(stats.gram.dtype)
            classifier = layer.role == "last" and isinstance(layers[name], nn.Linear)
            if classifier and plan.method.classifier_in_weight_space:
                stats = LayerStats.weight_space(weight)
            codes[name] = plan.method.solve_weights(stats, weight, layer.wbits)
    return Weights(codes, seconds)


def apply_weights(network: nn.Module, plan: Plan, weights: Weights) -> dict[str, list[QuantizedLayer]]:
    """Puts integers into `network`; returns, by name, the layers that now hold some."""
    layers = weighted_layers(network)
    return {
        name: put_weights(network, layers[name], plan.layers[name].wbits, codes.codes, codes.scale, codes.offset)
        for name, codes in weights.codes.items()
    }


def _norms_as_refitted(network: nn.Module, settings: BatchNorm, batches: CalibrationBatches) -> AbstractContextManager:
    """Batch-norm normalises by the batch, as the published code has it when it samples activations, where its
    statistics will be refitted, which do not fit the integer weights yet; but not by small ones."""
    refitted = settings.mode != "none" and not batches.small
    return norms_in_training(network, settings.momentum) if refitted else nullcontext()


@freed_memory_kept()
def refine(
    model: nn.Module,
    network: nn.Module,
    plan: Plan,
    layers: dict[str, list[QuantizedLayer]],
    inputs: list[QuantizedInput],
    batches: CalibrationBatches,
) -> None:
    """Hands all scales to the method, with the loss of `network` against the floating-point `model`."""
    reference = evaluation_copy(model)
    originals = weighted_layers(reference)
    weights = []
    for name, wrappers in layers.items():

        def put(codes: Codes, wbits=plan.layers[name].wbits, wrappers=wrappers) -> None:
            for wrapper in wrappers:
                wrapper.put(wbits, codes.codes, codes.scale, codes.offset)

        weights.append(RefinableWeight(grouped_weight(originals[name]), plan.layers[name].wbits, put))
    scales = [
        RefinableInput(samples, quantizer.grid, quantizer.scale.copy_)
        for shared in inputs
        for samples, quantizer in zip(shared.samples, shared.quantizers, strict=True)
    ]
    plan.method.refine(weights, scales, CalibrationLoss(reference, network, batches))


@freed_memory_kept()
def refit(network: nn.Module, plan: Plan, batches: CalibrationBatches, norms: FloatNorms | None) -> None:
    """Batch-norm statistics that fit `network` as it is now, in place."""
    total = batches.count(plan.settings.batch_norm.batches)
    refit_batch_norm(network, plan.settings.batch_norm, batches.first(total), total, norms)


@freed_memory_kept()
def reestimated(model: nn.Module, calibration: Iterable, settings: BatchNorm, batch_size: int) -> nn.Module:
    """The floating-point network with the batch-norm re-estimation that `quantize` applies to the quantized one, whose
    settings count in batches of `batch_size`."""
    network = evaluation_copy(model)
    batches = CalibrationBatches(calibration, network, batch_size)
    total = batches.count(settings.batches)
    norms = measure_float_norms(network, settings, batches.first(total), total)
    refit_batch_norm(network, settings, batches.first(total), total, norms)
    return network


def _configuration(method: Method, settings: Settings) -> dict:
    """What a network was quantized with, nothing left to decide, as plain values of JSON."""
    fields = dataclasses.asdict(method) if dataclasses.is_dataclass(method) else {}
    plain = {"method": {"name": method.name, **fields}, "settings": dataclasses.asdict(settings)}
    return json.loads(json.dumps(plain, default=str))


def _checked(value: object, kind: type, name: str):
    if not isinstance(value, kind):
        raise InputError(f"{name} must be a bitsplit {kind.__name__}, got {value!r}")
    return value
