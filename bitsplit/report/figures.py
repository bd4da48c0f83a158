"""Every figure of a data set's records, and their files.

No pyplot and no global state in any of them: a figure can be made anywhere and logged.
"""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import pandas
from matplotlib.figure import Figure

from bitsplit.files import write_text
from bitsplit.report.bit_width_figure import HEADINGS, bit_width_figure, curves
from bitsplit.report.detector_figure import detector_figure, precision_curves
from bitsplit.report.records import Records
from bitsplit.report.styles import DPI


def bit_width_figures(runs: list[dict]) -> dict[str, Figure]:
    """The figures of one data set's records by their names, without those that would be empty."""
    return {name: draw() for name, (_, draw) in _contents(runs).items()}


def _contents(runs: list[dict]) -> dict[str, tuple[pandas.DataFrame, Callable[[], Figure]]]:
    """By the name of each figure that is not empty: the data drawn, and what draws it."""
    contents = {sweep: (curves(runs, sweep), partial(bit_width_figure, runs, sweep)) for sweep in HEADINGS}
    contents["table5"] = precision_curves(runs), partial(detector_figure, runs)
    return {name: (table, draw) for name, (table, draw) in contents.items() if not table.empty}


def write_figures(records: Records, folder: Path) -> list[Path]:
    """Writes `folder`/<name>.png, .svg and .csv, the drawn data, for every figure with records; returns the images.

    Images are drawn again only where the data differ or an image is missing: another version of matplotlib or other
    fonts change none.
    """
    images = []
    for name, (table, draw) in _contents(records.runs).items():
        text = table.to_csv(index=False)
        data, png, svg = (folder / f"{name}.{ending}" for ending in ("csv", "png", "svg"))
        images += [png, svg]
        if png.exists() and svg.exists() and data.exists() and data.read_text(encoding="utf-8") == text:
            continue
        # The data are written last: without them an interrupted drawing counts as none.
        data.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        figure = draw()
        figure.savefig(png, dpi=DPI)
        write_text(svg, _svg(figure))
        write_text(data, text)
    return images


def _svg(figure: Figure) -> str:
    """The figure as SVG, the same text every time."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "bitsplit"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines())
