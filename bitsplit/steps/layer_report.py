"""The report of a quantized network: one row a layer, made once, at the end."""

import functools

import pandas
from torch import Tensor, nn

from bitsplit.layers.quantized import QuantizedLayer
from bitsplit.layout import WEIGHTED, grouped_weight, weighted_layers
from bitsplit.plan import Plan
from bitsplit.settings import FLOAT_BITS
from bitsplit.solver.objective import objective, panels
from bitsplit.statistics.moments import LayerStats, Statistics
from bitsplit.steps.input_scales import QuantizedInput


def float_report(network: nn.Module) -> pandas.DataFrame:
    """The report of a network that is left in floating point."""
    rows = {name: _row(name, tuple(layer.weight.shape)) for name, layer in weighted_layers(network).items()}
    return pandas.DataFrame((rows | _other_rows(network, rows)).values())


def layer_report(
    network: nn.Module, plan: Plan, statistics: Statistics, inputs: list[QuantizedInput], errors: dict[str, float]
) -> pandas.DataFrame:
    """Rows for the layers of `plan` that calibration reached, with their `weight_errors`, then for the weights left in
    floating point: of layers that could not be quantized, and of modules that are none of ours."""
    rows = {}
    for name in (name for name in plan.layers if name in statistics.layers):
        shape, wbits = tuple(_layer(network, name).weight.shape), plan.layers[name].wbits
        plain = name not in plan.reads or plan.reads[name].plain
        note = "" if plain else "input left in floating point: its own forward, or a hook, does more than pad it"
        rows[name] = _row(name, shape, wbits, note) | {"relative_error": errors.get(name, 0.0)}
    for key, reason in statistics.skipped.items():
        name = key.removesuffix(".weight")
        if name in rows:
            rows[name]["note"] = f"quantized, but also {reason}"
        else:
            shape = tuple(functools.reduce(getattr, key.split("."), network).shape)
            rows[name] = _row(name, shape, note=f"left in floating point: {reason}")
    for shared in inputs:
        for name in shared.names:
            rows[name] |= _input_columns(plan.layers[name].abits, shared)
    return pandas.DataFrame((rows | _other_rows(network, rows)).values())


def weight_errors(network: nn.Module, plan: Plan, statistics: Statistics) -> dict[str, float]:
    """‖y − ŷ‖² / ‖y‖² of the output through the integer weights, by layer."""
    return {
        name: _relative_error(grouped_weight(_layer(network, name)), statistics.layers[name].stats)
        for name in plan.layers
        if name in statistics.layers and plan.layers[name].wbits != FLOAT_BITS
    }


def _layer(network: nn.Module, name: str) -> nn.Module:
    module = network.get_submodule(name)
    return module.layer if isinstance(module, QuantizedLayer) else module


def _relative_error(weight: Tensor, stats: LayerStats) -> float:
    """‖y − ŵX‖² / ‖y‖² of the whole layer for dequantized weights (G, M, N); 0 for a layer without any output."""
    unit = weight.new_ones(())
    changed = sum(objective(w, unit, stats.gram, y).sum() for w, y in panels(weight, stats.cross))
    squared = changed + stats.energy.sum()
    return (squared / stats.energy.sum()).clamp_min(0).item() if stats.energy.sum() > 0 else 0.0


def input_error(shared: QuantizedInput) -> float:
    """‖x − x̂‖² / ‖x‖² of a layer's input."""
    squared = power = 0.0
    for samples, quantizer in zip(shared.samples, shared.quantizers, strict=True):
        values, grid, scale = samples.values, quantizer.grid.reshaped(-1), quantizer.scale.flatten()
        squared += (values - grid.quantize(values, scale) * scale).square().sum().item()
        power += values.square().sum().item()
    return squared / power if power > 0 else 0.0


def _input_columns(abits: int, shared: QuantizedInput) -> dict:
    if not shared.quantizers:
        return {"note": shared.note}
    quantizer = shared.quantizers[0]
    signed = quantizer.signed or quantizer.zero > 0
    return {"abits": abits, "signed": signed, "input_error": input_error(shared)}


def _other_rows(network: nn.Module, rows: dict[str, dict]) -> dict[str, dict]:
    """Rows of parameters that no layer of ours covers. Vectors, which biases and norms are, count as no weights; what a
    layer's weight is computed from has that layer's row."""
    wrapped = [name for name, module in network.named_modules() if isinstance(module, QuantizedLayer)]
    covered = {id(module.weight) for module in network.modules() if isinstance(module, WEIGHTED)}
    others = {}
    for place, parameter in network.named_parameters():
        owner, computed, _ = place.rpartition(".")[0].partition("parametrizations.")
        module = network.get_submodule(owner.removesuffix("."))
        vector = parameter.numel() <= max(parameter.shape, default=1)
        if vector or id(parameter) in covered or (computed and isinstance(module, WEIGHTED)):
            continue
        for wrapper in wrapped:
            place = place.replace(f"{wrapper}.layer.", f"{wrapper}.") if place.startswith(f"{wrapper}.") else place
        name = place.removesuffix(".weight")
        if name not in rows:
            note = f"left in floating point: a parameter of {type(module).__name__}, which is not supported"
            others[name] = _row(name, tuple(parameter.shape), note=note)
    return others


def _row(name: str, shape: tuple[int, ...], wbits: int = FLOAT_BITS, note: str = "") -> dict:
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
