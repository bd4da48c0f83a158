"""One self-contained HTML page about a quantized network: no scripts, and nothing that is loaded from elsewhere."""

import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

import bitsplit
from bitsplit.errors import InputError
from bitsplit.export.page import charts, words
from bitsplit.export.page.facts import LayerFacts, Size, facts_of_layers, usual_bits, weights_by_bits
from bitsplit.files import output_file, write_text
from bitsplit.settings import FLOAT_BITS

_TEMPLATE = Path(__file__).with_name("page.html.jinja")
_NETWORKS = {
    "fp32": "floating point",
    "fp32_bn": "the same, batch-norm re-estimated",
    "quantized": "quantized",
}
_LIKENESSES = {"agreement": "agreement %", "logits_snr_db": "SNR dB"}  # with the floating-point network
_METRICS = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    **{f"bbox_ap{iou}": f"box AP{iou}" for iou in ("", 50, 75)},
    **{f"segm_ap{iou}": f"mask AP{iou}" for iou in ("", 50, 75)},
    **_LIKENESSES,
}


def write_page(qmodel: nn.Module, path: str | Path, metrics: Mapping[str, Mapping] | None = None) -> None:
    """Writes an HTML page about a network from `quantize`: size, errors by layer, what layers read and where that is
    clipped, histograms of the integer weights, the worst layers, and the configuration.

    metrics: a record's, {"fp32": {"top1": …}, "fp32_bn": …, "quantized": …}, for a table of accuracies. Raises
    InputError for a network without a report, other metrics, or a path that cannot be written.
    """
    text = _page(qmodel, _checked_metrics(metrics))
    write_text(output_file(path), text)


def _checked_metrics(metrics: object) -> dict[str, Mapping]:
    rows = metrics or {}
    if not isinstance(rows, Mapping) or not all(isinstance(row, Mapping) for row in rows.values()):
        raise InputError("metrics must be a record's: {'fp32': {'top1': 84.1}, 'quantized': {'top1': 82.6}}, say")
    return dict(rows)


def _page(qmodel: nn.Module, metrics: dict[str, Mapping]) -> str:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "bits": lambda layer: words.bits_name(layer.wbits, layer.abits),
        "bytes": words.bytes_text,
        "change": words.change_text,
        "clip": words.clip_text,
        "count": "{:,}".format,
        "outline": charts.histogram_outline,
        "percent": words.percent_text,
        "printable": words.printable,
        "value": words.value_text,
    }
    layers, size = facts_of_layers(qmodel), Size.of(qmodel)
    usual = usual_bits(layers)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        network=type(qmodel).__name__,
        usual_wbits=usual[0],
        layers=layers,
        size=size,
        worst=words.worst_layers(layers),
        share=lambda part, whole: f"{100 * part / whole:.1f}" if whole else "0.0",
        FLOAT_BITS=FLOAT_BITS,
        **_accuracy(metrics),
        **_parts(layers, size),
        **_axes(layers),
        **_origin(qmodel, usual),
    )


def _accuracy(metrics: dict[str, Mapping]) -> dict:
    """The table of accuracies: by network the values of its columns, and by how much they change."""
    columns = {
        key: title for key, title in _METRICS.items() if any(row.get(key) is not None for row in metrics.values())
    }
    quantized, float_values = metrics.get("quantized", {}), metrics.get("fp32", {})
    changes = [
        None
        if key in _LIKENESSES or None in (quantized.get(key), float_values.get(key))
        else quantized[key] - float_values[key]
        for key in columns
    ]
    headlines = [
        {"title": title, "value": quantized[key], "change": change}
        for (key, title), change in zip(columns.items(), changes, strict=True)
        if quantized.get(key) is not None
    ]
    return {
        "columns": columns,
        "accuracies": {_NETWORKS.get(name, name): [row.get(key) for key in columns] for name, row in metrics.items()},
        "changes": changes if any(change is not None for change in changes) else [],
        "headline": next(iter(headlines), None),
        "images": next((row["images"] for row in metrics.values() if row.get("images")), None),
    }


def _parts(layers: list[LayerFacts], size: Size) -> dict:
    """The parts of the two stacked bars, each (its class, how much, what it is, a number of things in it)."""
    groups = weights_by_bits(layers)
    names = {bits: "floating point" if bits == FLOAT_BITS else f"{bits} bits" for bits in groups}
    weights = {bits: sum(layer.weights for layer in group) for bits, group in groups.items()}
    codes = [(f"b{bits}", bits * n / 8, f"integers of {bits} bits", n) for bits, n in size.codes.items()]
    floats = [("scales", size.scales, "scales"), ("rest", size.rest, "all that stays in floating point")]
    return {
        "groups": groups,
        "weight_parts": [(f"b{bits}", weights[bits], names[bits], len(group)) for bits, group in groups.items()],
        "size_parts": [*codes, *((kind, 4 * n, label, n) for kind, n, label in floats)],
        "all_weights": sum(weights.values()),
        "integer_weights": sum(count for bits, count in weights.items() if bits != FLOAT_BITS),
    }


def _axes(layers: list[LayerFacts]) -> dict:
    """The axis of errors, and that of ranges with a row for each tensor that a layer reads in a forward."""
    errors = [error for layer in layers for error in (layer.relative_error, layer.input_error)]
    rows = [(layer, number, values) for layer in layers for number, values in enumerate(layer.inputs, start=1)]
    return {
        "error_axis": charts.ErrorAxis.over(errors),
        "range_axis": charts.RangeAxis.over([values for _, _, values in rows]),
        "ranges": rows,
        "unread": sum(not layer.inputs for layer in layers),
        "greatest": charts.greatest,
    }


def _origin(qmodel: nn.Module, usual: tuple[int, int]) -> dict:
    """What made the network, as far as it knows; the bits asked for, or else the `usual` ones."""
    configuration = getattr(qmodel, "configuration", {})
    bits = configuration.get("settings", {}).get("bits", {})
    versions = {"bitsplit": bitsplit.__version__, "torch": torch.__version__, "numpy": np.__version__}
    return {
        "bits": words.bits_name(bits.get("wbits", usual[0]), bits.get("abits", usual[1])),
        "method": configuration.get("method", {}).get("name", ""),
        "configuration": list(words.flattened(configuration)),
        "versions": {"Python": platform.python_version()} | versions,
    }
