"""Post-training quantization of a whole network: the order of steps, and nothing but the order (METHODS, section 4).

statistics → weights → batch-norm → activation scales → batch-norm
"""

import copy
import functools
import itertools
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pandas
import torch
from torch import Tensor, nn
from tqdm import tqdm

from bitsplit.config import FLOAT_BITS, BatchNorm, Settings
from bitsplit.errors import InputError
from bitsplit.grid import Grid
from bitsplit.layers import (
    BatchNormStatistics,
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
from bitsplit.methods.base import Codes, Method
from bitsplit.solver import objective
from bitsplit.stats import (
    InputSamples,
    LayerStats,
    Statistics,
    collect_samples,
    collect_statistics,
    grouped_weight,
    weighted_layers,
)


class CalibrationBatches:
    """Calibration images as often as they are needed, labels dropped, where and how the network's weights lie.

    `source` yields batches (N, C, H, W) or (images, anything). A source that can be read only once, or whose length is
    unknown, is kept in memory.
    """

    def __init__(self, source: Iterable, network: nn.Module):
        self._source = source if hasattr(source, "__len__") and iter(source) is not source else list(source)
        self._device, self._layout = _placement(network)
        if len(self._source) == 0:
            raise InputError("calibration is empty: give at least one batch of images")

    def __len__(self) -> int:
        return len(self._source)

    def count(self, limit: int) -> int:
        return min(len(self), limit)

    def first(self, limit: int) -> Iterator[Tensor]:
        for batch in itertools.islice(self._source, limit):
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not isinstance(images, Tensor):
                raise InputError(
                    "calibration must yield image batches or (images, anything) tuples; "
                    f"got an element of type {type(images).__name__}"
                )
            yield images.to(self._device, memory_format=self._layout if images.dim() == 4 else torch.preserve_format)


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
    network = _evaluation_copy(network)
    return _collect(network, CalibrationBatches(calibration, network), settings)


def quantize(
    network: nn.Module,
    calibration: Iterable,
    method: Method,
    settings: Settings,
    statistics: Statistics | None = None,
) -> nn.Module:
    """A quantized copy of `network` in eval mode; see `bitsplit.quantize` for what it carries.

    Raises InputError for calibration that is empty or makes the network produce NaN.
    """
    network = _evaluation_copy(network)
    seconds: dict[str, float] = {}
    network.seconds = seconds
    batches = CalibrationBatches(calibration, network)
    if settings.bits.floating_point:
        rows = [_report_row(name, tuple(layer.weight.shape)) for name, layer in weighted_layers(network).items()]
        network.report = pandas.DataFrame(rows)
        return network
    statistics = statistics or _collect(network, batches, settings)
    seconds["statistics"] = statistics.seconds
    if not statistics.layers:
        raise InputError("the network has no convolution or linear layer that the calibration pictures reach")
    plans = _plan(statistics, settings)
    with _timed(seconds, "batch_norm"):
        wanted = settings.batch_norm.decided(method.batch_norm, available=len(batches))
        batch_norm = _BatchNormStep(network, batches, wanted)
    with _timed(seconds, "weights"):
        rows = _quantize_weights(network, statistics, plans, method)
    with _timed(seconds, "batch_norm"):
        batch_norm.apply(network)
    if settings.bits.abits != FLOAT_BITS:
        with _timed(seconds, "activations"):
            _quantize_inputs(network, statistics, plans, method, batches, settings, rows)
        with _timed(seconds, "batch_norm"):
            batch_norm.apply(network)
    network.report = pandas.DataFrame(rows.values())
    return network.eval()


def reestimated(network: nn.Module, calibration: Iterable, wanted: BatchNorm) -> nn.Module:
    """The floating-point network with the batch-norm re-estimation that `quantize` applies to the quantized one."""
    network = _evaluation_copy(network)
    _BatchNormStep(network, CalibrationBatches(calibration, network), wanted).apply(network)
    return network


def _evaluation_copy(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network).eval()
    # A lone layer needs a parent in which it can be replaced.
    return nn.Sequential(network) if isinstance(network, (nn.Conv2d, nn.Linear)) else network


def _placement(network: nn.Module) -> tuple[torch.device, torch.memory_format]:
    """The device and the memory layout of the network's weights, which its input should have too."""
    weights = [*network.parameters(), *network.buffers()]
    channels_last = any(w.dim() == 4 and not w.is_contiguous() for w in weights)
    device = weights[0].device if weights else torch.device("cpu")
    return device, torch.channels_last if channels_last else torch.preserve_format


def _collect(network: nn.Module, batches: CalibrationBatches, settings: Settings) -> Statistics:
    wanted = settings.calibration
    total = batches.count(wanted.gram_batches)
    return collect_statistics(network, batches.first(total), total, wanted.patches, settings.seed)


def _plan(statistics: Statistics, settings: Settings) -> dict[str, LayerPlan]:
    """Roles by the order of the calls: the first layer called reads the image, the last makes the prediction.

    No layer that reads the image reads it quantized.
    """
    names = list(statistics.layers)
    image = statistics.layers[names[0]].source
    roles = dict.fromkeys(names, "other") | {names[0]: "first", names[-1]: "last"}
    if len(names) == 1:
        roles[names[0]] = "only"
    plans = {name: LayerPlan(name, role, *settings.bits.of(role)) for name, role in roles.items()}
    for name, plan in plans.items():
        if statistics.layers[name].source == image:
            plan.abits = FLOAT_BITS
    return plans


def _quantize_weights(
    network: nn.Module, statistics: Statistics, plans: dict[str, LayerPlan], method: Method
) -> dict[str, dict]:
    """Puts a `QuantizedLayer` in the place of every layer that is asked for in integers.

    Returns the rows of the report by layer name, those of the layers and weights left in floating point included.
    """
    rows = {}
    found, everything = weighted_layers(network), _all_layers(network)
    for name, plan in tqdm(plans.items(), "weights", disable=None, leave=False):
        layer, record = found[name], statistics.layers[name]
        rows[name] = _report_row(name, tuple(layer.weight.shape), wbits=plan.wbits, abits=plan.abits)
        codes = None
        if plan.wbits != FLOAT_BITS:
            weight = grouped_weight(layer).to(record.stats.gram.dtype)
            # The authors solve the classifier in weight space; it reads one patch an image, so there are few of them.
            classifier = plan.role == "last" and isinstance(layer, nn.Linear)
            stats = LayerStats.weight_space(weight) if classifier else record.stats
            codes = method.solve_weights(stats, weight, plan.wbits)
            rows[name]["relative_error"] = _relative_error(codes, record.stats)
        if (plan.wbits, plan.abits) != (FLOAT_BITS, FLOAT_BITS):
            _put_in_place(network, [twin for _, twin in everything if twin.weight is layer.weight], codes)
    for key, reason in statistics.skipped.items():
        name = key.removesuffix(".weight")
        if name in rows:
            rows[name]["note"] = f"quantized, but also {reason}"
        else:
            shape = tuple(functools.reduce(getattr, key.split("."), network).shape)
            rows[name] = _report_row(name, shape, note=f"left in floating point: {reason}")
    return rows


def _put_in_place(network: nn.Module, twins: list[nn.Module], codes: Codes | None) -> None:
    """Replaces the modules that share one weight by quantized layers that share one dequantized weight."""
    wrappers = [QuantizedLayer(twin, *((codes.codes, codes.scale) if codes else ())) for twin in twins]
    for twin, wrapper in zip(twins, wrappers, strict=True):
        if codes:
            twin.weight = wrappers[0].layer.weight
        replace_module(network, twin, wrapper)


def _quantize_inputs(
    network: nn.Module,
    statistics: Statistics,
    plans: dict[str, LayerPlan],
    method: Method,
    batches: CalibrationBatches,
    settings: Settings,
    rows: dict[str, dict],
) -> None:
    """Gives every layer that is asked for with integer inputs its quantizer; layers that read one tensor share it."""
    wanted = {name: plan for name, plan in plans.items() if plan.abits != FLOAT_BITS}
    total = batches.count(settings.calibration.scale_batches)
    layers = {name: network.get_submodule(name).layer for name in wanted}
    samples = collect_samples(network, layers, batches.first(total), total, settings.calibration.samples, settings.seed)
    sharing: dict[tuple[str, int], list[str]] = {}
    for name, plan in wanted.items():
        sharing.setdefault((statistics.layers[name].source, plan.abits), []).append(name)
    weights = {name: layers[name].weight for name in wanted}
    for (_, abits), names in sharing.items():
        seen = [samples[name] for name in names if name in samples]
        if not seen:
            for name in names:
                rows[name] |= {"abits": FLOAT_BITS, "note": "input left in floating point: not called on its pictures"}
            continue
        pooled = InputSamples.pooled(seen)
        grid = Grid(abits, signed=pooled.low < 0 or any(statistics.layers[name].signed for name in names))
        scale = method.calibrate_activations(pooled, grid)
        quantizer = InputQuantizer(grid, scale)
        for module in network.modules():
            if isinstance(module, QuantizedLayer) and any(module.layer.weight is weights[name] for name in names):
                module.input_quantizer = quantizer
        for name in names:
            rows[name]["signed"] = grid.signed
            rows[name]["input_error"] = _input_error(pooled, quantizer)


class _BatchNormStep:
    """The batch-norm re-estimation of one run. `network` is in floating point when the step is made."""

    def __init__(self, network: nn.Module, batches: CalibrationBatches, wanted: BatchNorm):
        self._mode = wanted.mode if batch_norms(network) else "none"
        self._batches, self._momentum, self._total = batches, wanted.momentum, batches.count(wanted.batches)
        if self._mode == "shift":
            self._trained = batch_norm_statistics(network)
            self._floating_point = self._measure(network)

    def apply(self, network: nn.Module) -> None:
        if self._mode == "reestimate":
            reestimate_batch_norm(network, self._batches.first(self._total), self._total, self._momentum)
        elif self._mode == "shift":
            quantized = self._measure(network)
            set_batch_norm(network, shifted_batch_norm(self._trained, self._floating_point, quantized))

    def _measure(self, network: nn.Module) -> BatchNormStatistics:
        return measure_batch_norm(network, self._batches.first(self._total), self._total)


def _all_layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


def _report_row(name: str, shape: tuple[int, ...], wbits: int = FLOAT_BITS, abits: int = FLOAT_BITS, note: str = ""):
    return {
        "name": name,
        "shape": shape,
        "wbits": wbits,
        "abits": abits,
        "signed": None,
        "relative_error": 0.0,
        "input_error": 0.0,
        "note": note,
    }


def _relative_error(codes: Codes, stats: LayerStats) -> float:
    """‖y − αqX‖² / ‖y‖² of the whole layer; 0 for a layer without any output."""
    squared = objective(codes.codes, codes.scale, stats.gram, stats.cross).sum() + stats.energy.sum()
    return (squared / stats.energy.sum()).clamp_min(0).item() if stats.energy.sum() > 0 else 0.0


def _input_error(samples: InputSamples, quantizer: InputQuantizer) -> float:
    """‖x − x̂‖² / ‖x‖² of a layer's input."""
    power = samples.values.square().sum()
    return ((samples.values - quantizer(samples.values)).square().sum() / power).item() if power > 0 else 0.0


@contextmanager
def _timed(seconds: dict[str, float], phase: str):
    start = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start
