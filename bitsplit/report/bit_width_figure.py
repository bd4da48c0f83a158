"""Figure: top-1 against bit-width, one panel a network, one line a method, from the records of one data set."""

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bitsplit.report.styles import INCHES, PANEL_INCHES, legend_handles, styles
from bitsplit.report.sweeps import WIDTHS, sweep_cells, sweep_runs
from bitsplit.report.titles import FLOATING_POINT, MODEL_TITLES, in_order, model_title
from bitsplit.settings import FLOAT_BITS

HEADINGS = {  # of each sweep's figure, and the label of its horizontal axis
    "weights": ("Weights quantized, activations in floating point", "bit-width of the weights (bits)"),
    "both": ("Weights and activations quantized", "bit-width of weights and activations (bits)"),
}
CURVE_COLUMNS = ["model", "method", "wbits", "abits", "seeds", "images", "top1", "top1_interval"]
_SPREAD = 0.3  # bits between the first and the last method of one bit-width


def curves(runs: list[dict], sweep: str) -> pandas.DataFrame:
    """What the figure of a sweep, "weights" or "both", draws: columns `CURVE_COLUMNS`, accuracy in percent, interval
    (half width) in points. Floating point is a method of its own; only networks and cells with records."""
    runs = sweep_runs(runs, sweep)
    if sweep == "weights":
        runs = [run for run in runs if run["abits"] == FLOAT_BITS]
    if not runs:
        return pandas.DataFrame(columns=CURVE_COLUMNS)
    models = in_order((run["model"] for run in runs), MODEL_TITLES)
    table = sweep_cells(models, runs, sweep, paper=None)
    return table.loc[table["seeds"] > 0, CURVE_COLUMNS]


def paper_curves(paper: pandas.DataFrame, sweep: str) -> pandas.DataFrame:
    """The paper's curves of a sweep, which have no intervals, as `curves`; `paper` as in `Records`."""
    numbers = paper[paper["table"].isin([sweep, "fp32"])]
    if sweep == "weights":
        numbers = numbers[numbers["abits"] == FLOAT_BITS]
    return numbers.assign(top1=numbers["paper_top1"].astype(float)).reindex(columns=CURVE_COLUMNS)


def bit_width_figure(runs: list[dict], sweep: str = "both", paper: pandas.DataFrame | None = None) -> Figure:
    """Top-1 (%) against bit-width with 95% intervals, floating point dashed, from the records of one data set.

    `sweep` is "weights" (activations in floating point) or "both". Without records of the sweep the figure is empty.
    With `paper`, as in `Records`, each network has the paper's curves in a panel of their own beside ours, on an axis
    of their own: other data, other heights.
    """
    table = curves(runs, sweep)
    heading, width_label = HEADINGS[sweep]
    data = "; ".join(sorted({run["data"]["title"] for run in runs}))
    subtitle = f"{data}, 95% intervals"
    if paper is not None:
        subtitle = f"left: {subtitle}\nright: the paper's numbers on ImageNet, on an axis of their own"
    looks = styles(table["method"].unique())
    contents = _panels(table, None if paper is None else paper_curves(paper, sweep))
    columns = 1 if len(contents) < 2 else 2
    rows = max(1, -(-len(contents) // columns))
    figure = Figure(figsize=(INCHES, PANEL_INCHES * rows + 1.2), layout="constrained")
    sharey = True if paper is None else "col"
    panels = figure.subplots(rows, columns, sharex=True, sharey=sharey, squeeze=False).ravel()
    for panel, (title, numbers) in zip(panels, contents.items(), strict=False):
        _draw_curves(panel, numbers, looks)
        panel.set_title(title)
        panel.set_xlabel(width_label)
        panel.set_ylabel("top-1 accuracy (%)")
        panel.tick_params(labelbottom=True, labelleft=True)
    for panel in panels[len(contents) :]:
        panel.set_visible(False)
    figure.suptitle(f"{heading}\n{subtitle}")
    figure.legend(handles=legend_handles(looks), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _panels(ours: pandas.DataFrame, theirs: pandas.DataFrame | None) -> dict[str, pandas.DataFrame]:
    """The curves of each panel by its title."""
    models = list(ours["model"].unique())
    if theirs is None:
        return {model_title(model): ours[ours["model"] == model] for model in models}
    return {
        f"{model_title(model)}, {whose}": numbers[numbers["model"] == model]
        for model in models
        for whose, numbers in (("ours", ours), ("the paper's ImageNet numbers", theirs))
    }


def _draw_curves(panel: Axes, table: pandas.DataFrame, looks: dict[str, dict]) -> None:
    methods = [method for method in looks if method not in FLOATING_POINT]
    step = _SPREAD / max(len(methods) - 1, 2)
    for method, style in looks.items():
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
