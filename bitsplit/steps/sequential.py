"""The sequential order: every layer is solved against what the layers before it have left, in one lock-step pass.

At each layer, over all images: the scale of its input X̂, A = X̂X̂ᵀ and C = YX̂ᵀ with Y = WX the floating-point network's
own output, the integers, the bias; at each batch-norm layer the mean of what it reads; and all forwards go on.
"""

import collections
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bitsplit.errors import InputError
from bitsplit.layers.batch_norm import batch_norms
from bitsplit.layers.inputs import InputQuantizer
from bitsplit.layers.quantized import QuantizedLayer, put_input_quantizers, put_weights, wrap_layer
from bitsplit.layout import WEIGHTED, by_column, grouped_weight, trailing_dimensions, ungrouped, weighted_layers
from bitsplit.methods.base import Codes
from bitsplit.plan import Plan
from bitsplit.progress import progress
from bitsplit.settings import FLOAT_BITS
from bitsplit.statistics.batches import CalibrationBatches
from bitsplit.statistics.capture import LayerCall, layer_generators
from bitsplit.statistics.finite import finite_range
from bitsplit.statistics.lockstep import Lockstep, Stop, images_in_memory
from bitsplit.statistics.moments import LayerRecord, LayerStats, Statistics, unused_weights
from bitsplit.statistics.paired import PairedMoments
from bitsplit.statistics.samples import InputSamples
from bitsplit.steps.input_scales import QuantizedInput

_REFERENCE, _QUANTIZED = 0, 1  # the networks in lock-step
_REPORTED = 2_000  # values of each channel that the error of an input is measured on
_LEAST_GAIN = 1e-3  # of batch-norm, as a part of its greatest: through less, nothing can be made up for


@dataclass(frozen=True)
class SequentialResult:
    """What the pass has found out for the report, the errors of the integer weights by layer among it, and how many
    images were in lock-step."""

    statistics: Statistics
    inputs: list[QuantizedInput]
    errors: dict[str, float]
    images: int


def quantize_sequentially(
    reference: nn.Module, network: nn.Module, plan: Plan, batches: CalibrationBatches, lanes: int | None = None
) -> SequentialResult:
    """Quantizes `network`, a copy of the floating-point `reference`, in place, weights and inputs.

    As many images are in lock-step as the settings ask for and fit into `calibration.memory_gb`. `lanes` forwards run
    at a time, by default as many as torch has threads; their number changes no result.
    """
    sizes = plan.settings.calibration
    pieces = images_in_memory(
        (reference, network), batches.first(batches.count(sizes.lockstep_batches)), sizes.memory_gb
    )
    lanes = lanes or (torch.get_num_threads() if pieces[0].device.type == "cpu" else 1)
    work = _LockstepWork(reference, network, plan, [len(piece) for piece in pieces])
    calls = sum(len(reads.tensors) for reads in plan.reads.values())
    with (
        Lockstep((reference, network), plan.reads, pieces, lanes) as stops,
        progress(None, "lock-step", total=calls) as bar,
    ):
        for stop in stops:
            work.at(stop)
            bar.update(not stop.norm)
    return work.finish(stops.skipped(_QUANTIZED))


class _LockstepWork:
    """What is done at each stop, and what of it is kept; `pieces` has the images of each."""

    def __init__(self, reference: nn.Module, network: nn.Module, plan: Plan, pieces: list[int]):
        self._reference, self._network, self._plan, self._pieces = reference, network, plan, pieces
        self._originals, self._layers = weighted_layers(reference), weighted_layers(network)
        self._original_norms, self._norms = batch_norms(reference), batch_norms(network)
        self._biased = _with_own_bias(network)
        self._patch_generators = layer_generators(network, "{}", plan.settings.seed)
        self._sample_generators = layer_generators(network, "{}/input", plan.settings.seed)
        self._shifts: dict[str, list[Tensor]] = {}
        self._missing_means: dict[str, Tensor] = {}
        self._moments: dict[str, PairedMoments] = {}
        self._quantizers: dict[tuple, tuple[InputQuantizer, InputSamples]] = {}
        self._codes: dict[str, Codes] = {}
        self._errors: dict[str, float] = {}
        self._records: dict[str, LayerRecord] = {}
        self._lows: dict[str, float] = {}

    @torch.no_grad()
    def at(self, stop: Stop) -> None:
        if not any(stop.values[_QUANTIZED]):
            return  # a branch that only the floating-point network takes
        if stop.norm:
            if any(stop.values[_REFERENCE]):
                self._move_mean(stop)
            return
        name = stop.name
        if name not in self._plan.reads or stop.number >= len(self._plan.reads[name].tensors):
            raise InputError(f"forwards call the layer {name} more or less often from one to the next")
        calls = [value[0] for value in stop.values[_QUANTIZED] if value]
        lows, highs = zip(*(finite_range(name, call.input) for call in calls), strict=True)
        self._lows[name] = min(*lows, self._lows.get(name, 0.0))
        quantizer = None
        if self._plan.layers[name].abits != FLOAT_BITS:
            quantizer = self._quantizer(stop, calls, min(lows), max(highs))
            stop.rewrite(_QUANTIZED, quantizer.rounded)
        self._add_moments(stop, quantizer)
        # What is called several times is solved when all its calls have been seen.
        if len(self._plan.reads[name].tensors) == 1:
            self._solve(name)

    def _move_mean(self, stop: Stop) -> None:
        """A batch-norm layer's running mean moves as the mean of what it reads has, over all its calls so far."""
        means = [_overall_mean([value for value in values if value]) for values in stop.values]
        self._shifts.setdefault(stop.name, []).append(means[_QUANTIZED] - means[_REFERENCE])
        shift = torch.stack(self._shifts[stop.name]).mean(dim=0)
        shift = shift - self._missing_means.get(stop.name, 0.0)
        self._norms[stop.name].running_mean.copy_(self._original_norms[stop.name].running_mean + shift)

    def _quantizer(self, stop: Stop, calls: Sequence[LayerCall], low: float, high: float) -> InputQuantizer:
        """One for each tensor, whichever layers read it; low, high: the extremes of what they read."""
        key = self._key(stop.name, stop.number)
        if key not in self._quantizers:
            values = self._sampled(stop.name, calls)
            samples = InputSamples(values, low, high)
            method, (_, abits, positions) = self._plan.method, key
            signed = samples.low < 0
            readers = [name for name in self._plan.reads if key in self._keys(name)]
            folded = method.folded and self._can_fold(readers)
            if folded:
                weights = [(grouped_weight(self._originals[name]), self._plan.layers[name].wbits) for name in readers]
                grid, scale = method.folded_input(samples, abits, signed, weights)
            else:
                grid = method.input_grid(samples, abits, signed)
                if method.folded:  # scales by channel could not be moved into the weights
                    scale = grid.scale_by_alternation(values.flatten())
                else:
                    scale = method.calibrate_activations(samples, grid)
            ways = {"folded": folded, "in_place": self._plan.settings.quantized_shortcuts, "observed": (low, high)}
            # For the report a part of the sample will do: all layers' whole ones would be a gigabyte for ResNet-50.
            reported = replace(samples, values=values[:: -(-len(values) // _REPORTED)].clone())
            self._quantizers[key] = InputQuantizer(grid, scale, positions, **ways), reported
        return self._quantizers[key][0]

    def _can_fold(self, readers: list[str]) -> bool:
        """Whether the scales of a tensor's channels can go into the weights that read it: of layers that read nothing
        else, and which nothing else uses."""
        reads = [self._plan.reads[name] for name in readers]
        return all(len(layer.tensors) == 1 and not layer.lent for layer in reads)

    def _key(self, name: str, number: int) -> tuple[int, int, int]:
        positions = trailing_dimensions(self._originals[name])
        return self._plan.reads[name].tensors[number], self._plan.layers[name].abits, positions

    def _keys(self, name: str) -> tuple[tuple[int, int, int], ...]:
        """Of all its calls."""
        return tuple(self._key(name, number) for number in range(len(self._plan.reads[name].tensors)))

    def _sampled(self, name: str, calls: Sequence[LayerCall]) -> Tensor:
        """Input values at random positions, (n, C)."""
        wanted = max(self._plan.settings.calibration.samples / calls[0].channels, self._plan.method.channel_samples)
        generator = self._sample_generators[name]
        parts = zip(calls, _shared_out(wanted, calls), strict=True)
        return torch.cat([call.channel_vectors(count, generator) for call, count in parts])

    def _add_moments(self, stop: Stop, quantizer: InputQuantizer | None) -> None:
        name = stop.name
        moments = self._moments.setdefault(name, PairedMoments(grouped_weight(self._originals[name])))
        pieces = zip(*stop.values, self._pieces, strict=True)
        values = [(original or (None, None), value, images) for original, value, images in pieces if value]
        # What the networks choose for themselves, a detector's regions say, differs from one to the other; images stay.
        paired = all(
            original and original.input.shape == call.input.shape and len(call.input) == images
            for (original, _), (call, _), images in values
        )
        patches = self._plan.settings.calibration.lockstep_patches * self._plan.reads[name].shares[stop.number]
        made_up = self._plan.method.shortcuts and self._plan.reads[name].shortcut
        through_norm = self._through_norm(name) if made_up else None
        counts = _shared_out(patches, [call for _, (call, _), _ in values])
        for ((original, float_shortcut), (call, shortcut), _), count in zip(values, counts, strict=True):
            places = call.places(count, self._patch_generators[name])
            read = call.patches_at(places)
            x, missing = (original.patches_at(places) if paired else read), None
            if paired and shortcut is not None and through_norm is not None:
                lost = call.outputs_at(float_shortcut, places) - call.outputs_at(shortcut, places)
                missing = lost.mul_(through_norm)
            if quantizer:
                scale, step = (by_column(values, read) for values in (quantizer.scale, quantizer.step))
                read = quantizer.grid.quantize(read, scale).mul_(step)
            moments.add(x, read, missing)

    def _through_norm(self, name: str) -> Tensor:
        """By what an output must change for a change of 1 behind batch-norm: σ/γ, (G, 1, M); 0 where γ/σ is next to
        nothing. 1 without batch-norm."""
        norm_name, groups = self._plan.reads[name].shortcut.norm, getattr(self._layers[name], "groups", 1)
        if norm_name is None:
            return torch.ones(())
        norm = self._original_norms[norm_name]
        deviation = (norm.running_var + norm.eps).sqrt()
        gain = deviation.reciprocal() if norm.weight is None else norm.weight / deviation
        inverse = torch.where(gain.abs() > _LEAST_GAIN * gain.abs().max(), 1 / gain, torch.zeros_like(gain))
        return inverse.reshape(groups, 1, -1)

    def _solve(self, name: str) -> None:
        """The weight of a layer by integers, or, if it stays in floating point, with the scales moved into it; and the
        bias that brings its mean in order."""
        layer, moments, plan = self._layers[name], self._moments.pop(name), self._plan
        # Batch-norm or a bias takes the mean; where there is neither, or batch-norm has a mean for each call, or a
        # transposed kernel one for each place, the weights must.
        reads, calls = plan.reads[name], len(plan.reads[name].tensors)
        normalised = reads.normalised
        one_mean = not (normalised and (calls > 1 or reads.shared_norm)) and not isinstance(layer, nn.ConvTranspose2d)
        centred = one_mean and (normalised or name in self._biased)
        stats = moments.stats(centred)
        self._records[name] = LayerRecord(None, self._lows[name] < 0, calls)
        planned, (quantizer, _) = plan.layers[name], self._quantizers.get(self._key(name, 0), (None, None))
        if planned.wbits == FLOAT_BITS and not quantizer:
            return
        weight = grouped_weight(self._originals[name])
        if quantizer and quantizer.folded:
            weight = weight * by_column(quantizer.scale / quantizer.step, weight)
        original, gram = weight, stats.gram
        if planned.wbits != FLOAT_BITS:
            if planned.role == "last" and isinstance(layer, nn.Linear) and plan.method.classifier_in_weight_space:
                stats = LayerStats.weight_space(weight)
            codes = self._codes[name] = plan.method.solve_weights(stats, weight, planned.wbits)
            weight = codes.dequantized(weight.dtype)
            self._errors[name] = _relative_error(weight, original, gram)
        layer.weight.copy_(ungrouped(weight, layer))
        if centred and not normalised:
            layer.bias.add_(moments.mean_error(weight))
        if (shortcut := reads.shortcut) and shortcut.norm:
            self._missing_means[shortcut.norm] = moments.mean_missing.flatten()

    @torch.no_grad()
    def finish(self, skipped: dict[str, str]) -> SequentialResult:
        """Puts integers and quantizers in the place of the layers."""
        for name in list(self._moments):
            self._solve(name)
        for name, codes in self._codes.items():
            bits = self._plan.layers[name].wbits
            self._layers[name].weight.copy_(self._originals[name].weight)  # which an embedding may share
            put_weights(self._network, self._layers[name], bits, codes.codes, codes.scale, codes.offset)
        inputs = self._inputs()
        for shared in inputs:
            for name in shared.names:
                if not isinstance(layer := self._network.get_submodule(name), QuantizedLayer):
                    wrap_layer(self._network, layer)
                put_input_quantizers(self._network, self._network.get_submodule(name).layer.weight, shared.quantizers)
        records = {name: self._records[name] for name in self._plan.reads if name in self._records}
        statistics = Statistics(records, skipped | unused_weights(self._reference, records, skipped), 0.0)
        return SequentialResult(statistics, inputs, self._errors, sum(self._pieces))

    def _inputs(self) -> list[QuantizedInput]:
        """The quantizers by the layers that share them."""
        sharing: dict[tuple, list[str]] = {}
        for name in self._records:
            if self._plan.layers[name].abits != FLOAT_BITS:
                sharing.setdefault(self._keys(name), []).append(name)
        return [
            QuantizedInput(names, *map(list, zip(*(self._quantizers[key] for key in keys), strict=True)))
            for keys, names in sharing.items()
        ]


def _with_own_bias(network: nn.Module) -> set[str]:
    """Layers whose bias is a parameter that no other layer has, nor their weight: moving it moves their mean alone."""
    modules = [module for module in network.modules() if isinstance(module, WEIGHTED)]
    owners = collections.Counter(id(own) for module in modules for own in module._parameters.values())
    return {
        name
        for name, layer in weighted_layers(network).items()
        if layer._parameters.get("bias") is not None and owners[id(layer.bias)] == owners[id(layer.weight)] == 1
    }


def _relative_error(weight: Tensor, original: Tensor, gram: Tensor) -> float:
    """‖(ŵ − w)X̂‖² / ‖wX̂‖² of a layer by its weights (G, M, N) and its Gram matrix; 0 for one without any output."""
    changed, energy = (((rows @ gram) * rows).sum() for rows in (weight - original, original))
    return (changed / energy).clamp_min(0).item() if energy > 0 else 0.0


def _overall_mean(parts: list[tuple[Tensor, int]]) -> Tensor:
    """Of the means (C,) of so many values each."""
    return sum(mean * count for mean, count in parts) / sum(count for _, count in parts)


def _shared_out(total: float, calls: Sequence[LayerCall]) -> list[int]:
    """`total` parts of what the calls read, by the length of each: of images, or of the regions in them."""
    length = sum(len(call.input) for call in calls)
    return [-(-int(total * len(call.input)) // length) for call in calls]
