"""How every figure draws a method: colour, marker and line; and the sizes that they share."""

from collections.abc import Iterable

from matplotlib.lines import Line2D

from bitsplit.report.titles import FLOATING_POINT, PAPER_METHODS, in_order, method_title

# Okabe and Ito's colours, then two of Tol's, for colour-blind people too; yellow, pale on white, comes last.
_COLOURS = (
    *("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#000000", "#0072B2", "#D55E00"),
    *("#117733", "#882255", "#F0E442"),
)
_MARKERS = "sv^<>oDPX*h"
INCHES, PANEL_INCHES, DPI = 9, 3.8, 200  # at 900 pixels, text of 10 points is 14 pixels high


def styles(methods: Iterable[str]) -> dict[str, dict]:
    """Colour, marker and line of each method: those of the paper's methods never depend on what else is drawn."""
    quantized = [method for method in methods if method not in FLOATING_POINT]
    places = in_order([*PAPER_METHODS, *quantized], dict.fromkeys(PAPER_METHODS))
    edge = {"markeredgecolor": "black", "markeredgewidth": 0.4}
    looks = {"fp32": {"color": "#555555", "linestyle": "--"}}
    for method in quantized:
        place = places.index(method)
        looks[method] = {"color": _COLOURS[place % len(_COLOURS)], "marker": _MARKERS[place % len(_MARKERS)]} | edge
    return looks


def legend_handles(looks: dict[str, dict]) -> list[Line2D]:
    """One line for each method of `styles`."""
    return [Line2D([], [], label=method_title(method), **style) for method, style in looks.items()]
