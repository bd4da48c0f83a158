"""Post-training quantization of a whole network: the order of steps, and nothing but the order (METHODS, section 4).

statistics → weights → batch-norm → activation scales → [refinement of all scales] → batch-norm
"""

import copy
import functools
import time
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import pandas
from torch import Tensor, nn

from bitsplit.calibration import CalibrationBatches, CalibrationLoss, repeatable
from bitsplit.config import FLOAT_BITS, BatchNorm, Bits, Layers, Settings
from bitsplit.errors import InputError
from bitsplit.layers import (
    BatchNormStatistics,
    CallQuantizers,
    InputQuantizer,
    QuantizedLayer,
    batch_norm_statistics,
    batch_norms,
    measure_batch_norm,
    reestimate_batch_norm,
    replace_module,
    set_batch_norm,
    shifted_batch_norm,
)
from bitsplit.layout import WEIGHTED, grouped_weight
from bitsplit.methods.base import Codes, Method, RefinableInput, RefinableWeight
from bitsplit.objective import objective, panels
from bitsplit.progress import progress
from bitsplit.stats import (
    InputSamples,
    LayerStats,
    Statistics,
    collect_samples,
    collect_statistics,
    weighted_layers,
)


@dataclass
class LayerPlan:
    """What is asked of one layer."""

    name: str
    role: str  # "first", "last", "only" or "other", by the order of the calls
    wbits: int
    abits: int


def statistics_of(network: nn.Module, calibration: Iterable, settings: Settings | None = None) -> Statistics:
    """The statistics `quantize` starts from. They depend on the network, the pictures, `settings.calibration` and the
    seed only, so one pass can serve every method and bit-width (`quantize(..., statistics=...)`)."""
    settings = settings or Settings()
    wanted, network = settings.calibration, _evaluation_copy(network)
    batches = CalibrationBatches(calibration, network)
    total = batches.count(wanted.gram_batches)
    return collect_statistics(network, batches.first(total), total, wanted.patches, settings.seed)


@dataclass
class WeightStage:
    """A network whose weights are quantized and whose activations are not yet: the same for all activation bit-widths.

    rows: the report so far, by layer. weights: the layers with integer weights.
    """

    network: nn.Module
    rows: dict[str, dict]
    weights: "dict[str, _QuantizedWeight]"
    batch_norm: "_BatchNormStep"
    seconds: dict[str, float]

    def copy(self) -> "WeightStage":
        """A stage of its own; the calibration pictures are not copied."""
        own = copy.deepcopy((self.network, self.rows, self.weights))
        return WeightStage(*own, self.batch_norm, dict(self.seconds))


def quantize_weights(
    network: nn.Module, calibration: Iterable, method: Method, settings: Settings, statistics: Statistics
) -> WeightStage:
    """The first half of `quantize`, for `quantize(..., stage=...)` at several activation bit-widths."""
    network = _evaluation_copy(network)
    seconds = {"statistics": statistics.seconds}
    batches = CalibrationBatches(calibration, network)
    if not statistics.layers:
        raise InputError("the network has no convolution or linear layer that the calibration pictures reach")
    own = list(weighted_layers(network))  # also those that the calibration pictures do not reach
    for holder in (*settings.layers.predictions, *settings.layers.floating_point):
        if not _held(own, (holder,)):
            raise InputError(f"no layer is named {holder!r} or lies in it; the layers are {', '.join(own)}")
    plans = _plan(statistics, settings.bits.decided(method.edge_bits), settings.layers)
    with _timed(seconds, "batch_norm"):
        wanted = settings.batch_norm.decided(method.batch_norm, available=len(batches))
        batch_norm = _BatchNormStep(network, batches, wanted, statistics)
    with _timed(seconds, "weights"):
        rows, weights = _quantize_weights(network, statistics, plans, method)
    with _timed(seconds, "batch_norm"):
        batch_norm.apply(network)
    return WeightStage(network, rows, weights, batch_norm, seconds)


def quantize(
    network: nn.Module,
    calibration: Iterable,
    method: Method,
    settings: Settings,
    statistics: Statistics | None = None,
    stage: WeightStage | None = None,
) -> nn.Module:
    """A quantized copy of `network` in eval mode; see `bitsplit.quantize` for what it carries.

    `statistics` and `stage` are what other cells with the same pictures, or with the same weights as well, have left;
    both stay as they are. Raises InputError for calibration that is empty or makes the network produce NaN.
    """
    given, calibration = network, repeatable(calibration)
    if settings.bits.floating_point:
        network = _evaluation_copy(given)
        rows = [_report_row(name, tuple(layer.weight.shape)) for name, layer in weighted_layers(network).items()]
        network.report, network.seconds = pandas.DataFrame(rows), {}
        return network
    statistics = statistics or statistics_of(given, calibration, settings)
    stage = stage.copy() if stage else quantize_weights(given, calibration, method, settings, statistics)
    network, rows, weights, seconds = stage.network, stage.rows, stage.weights, stage.seconds
    batches = CalibrationBatches(calibration, network)
    inputs = []
    if settings.bits.abits != FLOAT_BITS:
        plans = _plan(statistics, settings.bits.decided(method.edge_bits), settings.layers)
        with _timed(seconds, "activations"):
            inputs = _quantize_inputs(network, statistics, plans, method, batches, settings, rows)
    if method.refine:
        loss = CalibrationLoss(_evaluation_copy(given), network, batches)
        with _timed(seconds, "refinement"):
            refinable = [layer.refinable() for layer in weights.values()]
            method.refine(refinable, [one for shared in inputs for one in shared.refinable()], loss)
    if settings.bits.abits != FLOAT_BITS:
        with _timed(seconds, "batch_norm"):
            stage.batch_norm.apply(network)
    for name, layer in weights.items():
        rows[name]["relative_error"] = _relative_error(layer.dequantized, statistics.layers[name].stats)
    for shared in inputs:
        error = _input_error(shared)
        for name in shared.names:
            rows[name] |= {"signed": shared.quantizers[0].signed, "input_error": error}
    network.report, network.seconds = pandas.DataFrame(rows.values()), seconds
    return network.eval()


def reestimated(network: nn.Module, calibration: Iterable, wanted: BatchNorm) -> nn.Module:
    """The floating-point network with the batch-norm re-estimation that `quantize` applies to the quantized one."""
    network = _evaluation_copy(network)
    batches = CalibrationBatches(calibration, network)
    _BatchNormStep(network, batches, wanted, Statistics()).apply(network)
    return network


def _evaluation_copy(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network).eval()
    # A lone layer needs a parent in which it can be replaced.
    return nn.Sequential(network) if isinstance(network, WEIGHTED) else network


def _plan(statistics: Statistics, bits: Bits, layers: Layers) -> dict[str, LayerPlan]:
    """Roles by the order of the calls: the first layer called reads the image, the last makes the prediction, unless
    `layers` names those that do.

    No layer that reads the image reads it quantized.
    """
    names = list(statistics.layers)
    image = statistics.layers[names[0]].source
    predictions = _held(names, layers.predictions) or names[-1:]
    roles = dict.fromkeys(names, "other") | {names[0]: "first"} | dict.fromkeys(predictions, "last")
    if len(names) == 1:
        roles[names[0]] = "only"
    plans = {name: LayerPlan(name, role, *bits.of(role)) for name, role in roles.items()}
    for name, plan in plans.items():
        if statistics.layers[name].source == image:
            plan.abits = FLOAT_BITS
    for name in _held(names, layers.floating_point):
        plans[name].wbits = plans[name].abits = FLOAT_BITS
    return plans


def _held(names: list[str], holders: tuple[str, ...]) -> list[str]:
    """The layers that `holders` name or hold."""
    return [name for name in names if any(f"{name}.".startswith(f"{holder}.") for holder in holders)]


@dataclass
class _QuantizedWeight:
    """A layer whose weights are integers now: its weight before and the modules that hold it, as they share it."""

    before: Tensor  # (G, M, N)
    bits: int
    wrappers: list[QuantizedLayer]

    @property
    def dequantized(self) -> Tensor:
        return grouped_weight(self.wrappers[0].layer)

    def put(self, codes: Codes) -> None:
        for wrapper in self.wrappers:
            wrapper.put(codes.codes, codes.scale, codes.offset)

    def refinable(self) -> RefinableWeight:
        return RefinableWeight(self.before, self.bits, self.put)


@dataclass
class _QuantizedInput:
    """What one or several layers read, call by call: a quantizer and a sample of what it reads for each call."""

    names: list[str]
    quantizers: list[InputQuantizer]
    samples: list[InputSamples]

    def refinable(self) -> list[RefinableInput]:
        pairs = zip(self.samples, self.quantizers, strict=True)
        return [RefinableInput(samples, quantizer.grid, quantizer.scale.copy_) for samples, quantizer in pairs]


def _quantize_weights(
    network: nn.Module, statistics: Statistics, plans: dict[str, LayerPlan], method: Method
) -> tuple[dict[str, dict], dict[str, _QuantizedWeight]]:
    """Puts a `QuantizedLayer` in the place of every layer that is asked for in integers.

    Returns the rows of the report by layer name, those of the layers and weights left in floating point included, and
    the layers whose weights are integers.
    """
    rows, quantized = {}, {}
    found = weighted_layers(network)
    for name, plan in progress(plans.items(), "weights"):
        layer, record = found[name], statistics.layers[name]
        rows[name] = _report_row(name, tuple(layer.weight.shape), wbits=plan.wbits)
        if plan.wbits == FLOAT_BITS:
            continue
        weight = grouped_weight(layer).to(record.stats.gram.dtype)
        # The authors solve the classifier in weight space; it reads one patch an image, so there are few of them.
        classifier = plan.role == "last" and isinstance(layer, nn.Linear)
        stats = LayerStats.weight_space(weight) if classifier else record.stats
        codes = method.solve_weights(stats, weight, plan.wbits)
        quantized[name] = _QuantizedWeight(weight, plan.wbits, _put_in_place(network, layer, codes))
    for key, reason in statistics.skipped.items():
        name = key.removesuffix(".weight")
        if name in rows:
            rows[name]["note"] = f"quantized, but also {reason}"
        else:
            shape = tuple(functools.reduce(getattr, key.split("."), network).shape)
            rows[name] = _report_row(name, shape, note=f"left in floating point: {reason}")
    return rows, quantized


def _put_in_place(network: nn.Module, layer: nn.Module, codes: Codes | None = None) -> list[QuantizedLayer]:
    """Replaces `layer` and the modules that share its weight by quantized layers that share one dequantized weight."""
    layers = (module for module in network.modules() if isinstance(module, WEIGHTED))
    twins = [module for module in layers if module.weight is layer.weight]
    arguments = (codes.codes, codes.scale, codes.offset) if codes else ()
    wrappers = [QuantizedLayer(twin, *arguments) for twin in twins]
    for twin, wrapper in zip(twins, wrappers, strict=True):
        if codes:
            twin.weight = wrappers[0].layer.weight
        replace_module(network, twin, wrapper)
    return wrappers


def _quantize_inputs(
    network: nn.Module,
    statistics: Statistics,
    plans: dict[str, LayerPlan],
    method: Method,
    batches: CalibrationBatches,
    settings: Settings,
    rows: dict[str, dict],
) -> list[_QuantizedInput]:
    """Gives every layer that is asked for with integer inputs its quantizers: one for each tensor that it reads in a
    forward. Layers that read the same tensors share them."""
    wanted = {name: plan for name, plan in plans.items() if plan.abits != FLOAT_BITS}
    total = batches.count(settings.calibration.scale_batches)
    for name, plan in wanted.items():
        rows[name]["abits"] = plan.abits
        if not isinstance(layer := network.get_submodule(name), QuantizedLayer):
            _put_in_place(network, layer)
    layers = {name: network.get_submodule(name).layer for name in wanted}
    sizes = settings.calibration.samples, method.channel_samples
    samples = collect_samples(network, layers, batches.first(total), total, *sizes, settings.seed)
    # Channels lie elsewhere in a convolution's input than in a linear layer's: their number of trailing dimensions.
    positions = {name: 0 if isinstance(layer, nn.Linear) else 2 for name, layer in layers.items()}
    sharing: dict[tuple[str, int, int], list[str]] = {}
    for name, plan in wanted.items():
        sharing.setdefault((statistics.layers[name].source, plan.abits, positions[name]), []).append(name)
    weights = {name: layers[name].weight for name in wanted}
    quantized = []
    for (_, abits, trailing), names in progress(sharing.items(), "activation scales"):
        seen = [samples[name] for name in names if name in samples]
        if not seen:
            for name in names:
                rows[name] |= {"abits": FLOAT_BITS, "note": "input left in floating point: not called on its pictures"}
            continue
        if all(len(calls) == statistics.layers[names[0]].calls for calls in seen):
            tensors = [InputSamples.pooled(call) for call in zip(*seen, strict=True)]
        else:  # called more or less often from forward to forward
            tensors = [InputSamples.pooled([call for calls in seen for call in calls])]
        signed = any(t.low < 0 for t in tensors) or any(statistics.layers[name].signed for name in names)
        quantizers = []
        for tensor in tensors:
            grid = method.input_grid(tensor, abits, signed)
            quantizers.append(InputQuantizer(grid, method.calibrate_activations(tensor, grid), trailing))
        for name in names:
            reads = CallQuantizers(quantizers) if len(quantizers) > 1 else quantizers[0]
            for module in network.modules():
                if isinstance(module, QuantizedLayer) and module.layer.weight is weights[name]:
                    module.input_quantizer = reads
        quantized.append(_QuantizedInput(names, quantizers, tensors))
    return quantized


class _BatchNormStep:
    """The batch-norm re-estimation of one run. `network` is in floating point when the step is made."""

    def __init__(self, network: nn.Module, batches: CalibrationBatches, wanted: BatchNorm, statistics: Statistics):
        self._mode = wanted.mode if batch_norms(network) else "none"
        self._batches, self._momentum, self._total = batches, wanted.momentum, batches.count(wanted.batches)
        if self._mode == "shift":
            self._trained = batch_norm_statistics(network)
            if self._total not in statistics.batch_norm:
                statistics.batch_norm[self._total] = self._measure(network)
            self._floating_point = statistics.batch_norm[self._total]

    def apply(self, network: nn.Module) -> None:
        if self._mode == "reestimate":
            reestimate_batch_norm(network, self._batches.first(self._total), self._total, self._momentum)
        elif self._mode == "shift":
            quantized = self._measure(network)
            set_batch_norm(network, shifted_batch_norm(self._trained, self._floating_point, quantized))

    def _measure(self, network: nn.Module) -> BatchNormStatistics:
        return measure_batch_norm(network, self._batches.first(self._total), self._total)


def _report_row(name: str, shape: tuple[int, ...], wbits: int = FLOAT_BITS, note: str = ""):
    return {
        "name": name,
        "shape": shape,
        "wbits": wbits,
        "abits": FLOAT_BITS,
        "signed": None,
        "relative_error": 0.0,
        "input_error": 0.0,
        "note": note,
    }


def _relative_error(weight: Tensor, stats: LayerStats) -> float:
    """‖y − ŵX‖² / ‖y‖² of the whole layer for dequantized weights (G, M, N); 0 for a layer without any output."""
    one = weight.new_ones(())
    changed = sum(objective(w, one, stats.gram, y).sum() for w, y in panels(weight, stats.cross))
    squared = changed + stats.energy.sum()
    return (squared / stats.energy.sum()).clamp_min(0).item() if stats.energy.sum() > 0 else 0.0


def _input_error(shared: _QuantizedInput) -> float:
    """‖x − x̂‖² / ‖x‖² of a layer's input."""
    squared = power = 0.0
    for samples, quantizer in zip(shared.samples, shared.quantizers, strict=True):
        values, grid, scale = samples.values, quantizer.grid.reshaped(-1), quantizer.scale.flatten()
        squared += (values - grid.quantize(values, scale) * scale).square().sum().item()
        power += values.square().sum().item()
    return squared / power if power > 0 else 0.0


@contextmanager
def _timed(seconds: dict[str, float], phase: str):
    start = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start
