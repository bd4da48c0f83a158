"""How every figure draws a method: colour, marker and line; and the sizes that they share."""

from collections.abc import Iterable

from matplotlib.lines import Line2D

from bitsplit.report.titles import FLOATING_POINT, method_title

# For colour-blind people too: Okabe and Ito's colours, and four of Tol's. The strongest are those of the methods that
# this project is about, the last five.
_COLOURS = {
    "tflite": "#E69F00",
    "tensorrt": "#56B4E9",
    "aciq": "#009E73",
    "aciq_mix": "#CC79A7",
    "lapq": "#882255",
    "gptq": "#999933",
    "bitsplit_ecaq": "#117733",
    "bitsplit_per_channel": "#332288",
    "bitsplit": "#000000",
    "bitsplit_lattice": "#0072B2",
    "bitsplit_plus": "#D55E00",
    "bitsplit_plus_midrise": "#AA3377",
}
_OTHER = "#AA4499"  # somebody's own method
_MARKERS = dict(zip(_COLOURS, "sv^<>hXpoDPd", strict=True))
INCHES, PANEL_INCHES, DPI = 9, 3.8, 200  # at 900 pixels, text of 10 points is 14 pixels high


def styles(methods: Iterable[str]) -> dict[str, dict]:
    """Colour, marker and line of each method, whatever else is drawn."""
    edge = {"markeredgecolor": "black", "markeredgewidth": 0.4}
    looks = {"fp32": {"color": "#555555", "linestyle": "--"}}
    for method in methods:
        if method not in FLOATING_POINT:
            looks[method] = {"color": _COLOURS.get(method, _OTHER), "marker": _MARKERS.get(method, "*")} | edge
    return looks


def legend_handles(looks: dict[str, dict]) -> list[Line2D]:
    """One line for each method of `styles`."""
    return [Line2D([], [], label=method_title(method), **style) for method, style in looks.items()]
