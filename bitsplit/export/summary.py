"""What has become of a network in a few lines: the bits of its weights, its size, its worst layers."""

import math

import pandas
from torch import nn

from bitsplit.export.architecture import float_state, quantized_layers
from bitsplit.export.packed.layers import packed_bytes
from bitsplit.settings import FLOAT_BITS

_ENOUGH = 0.9  # of the weights, below which a network counts as hardly quantized
_NAMED = 3  # of the worst layers


def summarize(qmodel: nn.Module) -> str:
    """A line on a network from `bitsplit.quantize` or `bitsplit.load`, and a warning where less than 90% of its weights
    are quantized.

    Weights are all those in its report; the size is that of all tensors in `bitsplit.save`'s file.
    """
    rows = qmodel.report
    if not len(rows):
        return "the network has no weights"
    counts = rows["shape"].map(math.prod)
    shares = counts.groupby(rows["wbits"]).sum().sort_values(ascending=False) / counts.sum()
    left = shares.get(FLOAT_BITS, 0.0)
    parts = [f"{_percent(share)} at {wbits} bits" for wbits, share in shares.items() if wbits != FLOAT_BITS]
    parts += [f"{_percent(left)} in floating point"] if left else []
    packed, original = _sizes(qmodel)
    line = f"weights: {', '.join(parts)}; {_bytes(packed)} packed ({packed / original:.2f} of floating point)"
    worst = rows[rows["relative_error"] > 0].nlargest(_NAMED, "relative_error")
    if len(worst):
        named = [f"{name} ({_percent(e)})" for name, e in zip(worst["name"], worst["relative_error"], strict=True)]
        line += f"; worst layers by the error of their output: {', '.join(named)}"
    return line if left <= 1 - _ENOUGH else f"{line}\n{_warning(rows, counts, left)}"


def _warning(rows: pandas.DataFrame, counts: pandas.Series, left: float) -> str:
    """What is left in floating point, by the reasons."""
    rows = rows.assign(share=counts / counts.sum())[rows["wbits"] == FLOAT_BITS]
    rows["reason"] = rows["note"].str.removeprefix("left in floating point: ").replace("", "as the bits ask for")
    parts = []
    for reason, group in sorted(rows.groupby("reason"), key=lambda item: -item[1]["share"].sum()):
        names = group.nlargest(1, "share")["name"].iloc[0] + (f" and {len(group) - 1} more" if len(group) > 1 else "")
        parts.append(f"{_percent(group['share'].sum())} {reason} ({names})")
    return f"warning: {_percent(left)} of the weights are not quantized: {'; '.join(parts)}"


def _sizes(qmodel: nn.Module) -> tuple[int, int]:
    """Bytes of all tensors as packed, and as they were in floating point."""
    rest = sum(tensor.nbytes for _, _, tensor in float_state(qmodel))
    layers = [layer for _, layer in quantized_layers(qmodel)]
    weights = sum(layer.layer.weight.nbytes for layer in layers if layer.codes is not None)
    return rest + sum(map(packed_bytes, layers)), rest + weights


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _percent(share: float) -> str:
    """In percent; 100 for all alone."""
    percent = 100 * share
    return f"{percent:.2g}%" if percent < 10 else f"{percent:.0f}%" if percent < 99 else f"{percent:.4g}%"
