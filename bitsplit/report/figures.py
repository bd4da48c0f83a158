"""Figures: top-1 against bit-width, one panel a network, one line a method.

The only module that needs matplotlib. No pyplot and no global state: a figure can be made anywhere and logged.
"""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bitsplit import record
from bitsplit.report import detector_figure
from bitsplit.report.cells import FLOAT_BITS
from bitsplit.report.folder import Folder
from bitsplit.report.styles import DPI, INCHES, PANEL_INCHES, legend_handles, styles
from bitsplit.report.sweeps import WIDTHS, runs_of, sweep_cells
from bitsplit.report.titles import FLOATING_POINT, MODEL_TITLES, in_order, model_title

SWEEPS = {
    "weights": ("Weights quantized, activations in floating point", "bit-width of the weights (bits)"),
    "both": ("Weights and activations quantized", "bit-width of weights and activations (bits)"),
}
DRAWN = ["model", "method", "wbits", "abits", "seeds", "images", "top1", "top1_interval"]
_SPREAD = 0.3  # bits between the first and the last method of one bit-width


def drawn(runs: list[dict], sweep: str) -> pandas.DataFrame:
    """What the figure of a sweep, "weights" or "both", draws: columns `DRAWN`, accuracy in percent, interval (half
    width) in points. Floating point is a method of its own; only networks and cells with records."""
    found = runs_of(runs, sweep)
    if sweep == "weights":
        found = [run for run in found if run["abits"] == FLOAT_BITS]
    if not found:
        return pandas.DataFrame(columns=DRAWN)
    models = in_order((run["model"] for run in found), MODEL_TITLES)
    table = sweep_cells(models, found, sweep, paper=None)
    return table.loc[table["seeds"] > 0, DRAWN]


def published(paper: pandas.DataFrame, sweep: str) -> pandas.DataFrame:
    """The paper's curves of a sweep, which have no intervals, in the columns of `drawn`; `paper` as in `Folder`."""
    found = paper[paper["table"].isin([sweep, "fp32"])]
    if sweep == "weights":
        found = found[found["abits"] == FLOAT_BITS]
    return found.assign(top1=found["paper_top1"].astype(float)).reindex(columns=DRAWN)


def bit_width_figure(runs: list[dict], sweep: str = "both", paper: pandas.DataFrame | None = None) -> Figure:
    """Top-1 (%) against bit-width with 95% intervals, floating point dashed, from the records of one data set.

    `sweep` is "weights" (activations in floating point) or "both". Without records of the sweep the figure is empty.
    With `paper`, as in `Folder`, each network has the paper's curves in a panel of their own beside ours, on an axis of
    their own: other data, other heights.
    """
    table = drawn(runs, sweep)
    heading, width_label = SWEEPS[sweep]
    models = list(table["model"].unique())
    contents = {model_title(model): table[table["model"] == model] for model in models}
    titles = "; ".join(sorted({run["data"]["title"] for run in runs}))
    subtitle = f"{titles}, 95% intervals"
    if paper is not None:
        theirs = published(paper, sweep)
        contents = {
            f"{model_title(model)}, {whose}": numbers[numbers["model"] == model]
            for model in models
            for whose, numbers in (("ours", table), ("the paper's ImageNet numbers", theirs))
        }
        subtitle = f"left: {subtitle}\nright: the paper's numbers on ImageNet, on an axis of their own"
    found = styles(table["method"].unique())
    columns = 1 if len(contents) < 2 else 2
    rows = max(1, -(-len(contents) // columns))
    figure = Figure(figsize=(INCHES, PANEL_INCHES * rows + 1.2), layout="constrained")
    sharey = True if paper is None else "col"
    panels = figure.subplots(rows, columns, sharex=True, sharey=sharey, squeeze=False).ravel()
    for panel, (title, numbers) in zip(panels, contents.items(), strict=False):
        _draw(panel, numbers, found)
        panel.set_title(title)
        panel.set_xlabel(width_label)
        panel.set_ylabel("top-1 accuracy (%)")
        panel.tick_params(labelbottom=True, labelleft=True)
    for panel in panels[len(contents) :]:
        panel.set_visible(False)
    figure.suptitle(f"{heading}\n{subtitle}")
    figure.legend(handles=legend_handles(found), loc="outside lower center", ncols=4, frameon=False)
    return figure


def bit_width_figures(runs: list[dict]) -> dict[str, Figure]:
    """The figures of one data set's records by their names, without those that would be empty."""
    return {name: draw() for name, (_, draw) in _contents(runs).items()}


def _contents(runs: list[dict]) -> dict[str, tuple[pandas.DataFrame, Callable[[], Figure]]]:
    """By the name of each figure that is not empty: the data drawn, and what draws it."""
    found = {sweep: (drawn(runs, sweep), partial(bit_width_figure, runs, sweep)) for sweep in SWEEPS}
    found["table5"] = detector_figure.drawn(runs), partial(detector_figure.detector_figure, runs)
    return {name: (table, draw) for name, (table, draw) in found.items() if not table.empty}


def write(folder: Folder, path: Path) -> list[Path]:
    """Writes `path`/<name>.png, .svg and .csv, the drawn data, for every figure with records; returns the pictures.

    Pictures are drawn again only where the data differ or a picture is missing: another version of matplotlib or other
    fonts change none.
    """
    pictures = []
    for name, (table, draw) in _contents(folder.runs).items():
        text = table.to_csv(index=False)
        data, png, svg = (path / f"{name}.{ending}" for ending in ("csv", "png", "svg"))
        pictures += [png, svg]
        if png.exists() and svg.exists() and data.exists() and data.read_text() == text:
            continue
        # The data are written last: without them an interrupted drawing counts as none.
        data.unlink(missing_ok=True)
        path.mkdir(parents=True, exist_ok=True)
        figure = draw()
        figure.savefig(png, dpi=DPI)
        record.write_text(svg, _svg(figure))
        record.write_text(data, text)
    return pictures


def _svg(figure: Figure) -> str:
    """The figure as SVG, the same text every time."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "bitsplit"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines())


def _draw(panel: Axes, table: pandas.DataFrame, found: dict[str, dict]) -> None:
    methods = [method for method in found if method not in FLOATING_POINT]
    step = _SPREAD / max(len(methods) - 1, 2)
    for method, style in found.items():
        cells = table[table["method"] == method]
        if cells.empty:
            continue
        name = f"{cells['model'].iloc[0]}-{method}"  # of the line's group in the SVG
        if method in FLOATING_POINT:
            top1, half = cells[["top1", "top1_interval"]].iloc[0]
            panel.axhspan(top1 - half, top1 + half, color=style["color"], alpha=0.12, linewidth=0)
            panel.axhline(top1, gid=name, **style)
            continue
        # Methods side by side, so that equal accuracies hide neither marker nor interval.
        cells = cells.set_index("wbits").reindex(sorted(WIDTHS))  # the line breaks where a bit-width has not run
        place = cells.index + (methods.index(method) - (len(methods) - 1) / 2) * step
        line, *_ = panel.errorbar(
            place, cells["top1"], cells["top1_interval"], capsize=3, capthick=1.5, markersize=5, **style
        )
        line.set_gid(name)
    panel.set_xticks(sorted(WIDTHS))
    panel.set_xlim(min(WIDTHS) - 0.5, max(WIDTHS) + 0.5)
    panel.grid(axis="y", alpha=0.3)
