"""Figure: what top-1 loses against floating point, by bit-width, from the records of one data set.

One panel a network, one line a method, on one axis for all. It ends below the methods that lose about as much as the
best one, so that they can be told apart; what a method loses beyond it is written at its lower end.
"""

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
CURVE_COLUMNS = [
    *("model", "method", "wbits", "abits", "seeds", "images"),
    *("top1", "top1_interval", "change", "change_interval"),
]
_SPREAD = 0.3  # bits between the first and the last method of one bit-width
_SHOWN = 3  # times what the best method loses at most, another may lose and be on the axis


def curves(runs: list[dict], sweep: str) -> pandas.DataFrame:
    """What the figure of a sweep, "weights" or "both", draws: columns `CURVE_COLUMNS`, accuracy in percent, change from
    floating point in points, intervals (half width) in points. Floating point is a method of its own; only cells with
    records, and only networks with several bit-widths, unless none has."""
    runs = sweep_runs(runs, sweep)
    if sweep == "weights":
        runs = [run for run in runs if run["abits"] == FLOAT_BITS]
    if not runs:
        return pandas.DataFrame(columns=CURVE_COLUMNS)
    models = in_order((run["model"] for run in runs), MODEL_TITLES)
    table = sweep_cells(models, runs, sweep, paper=None)
    table = table.assign(change=-table["drop"], change_interval=table["drop_interval"])
    table = table.loc[table["seeds"] > 0, CURVE_COLUMNS]
    widths = table[~table["method"].isin(FLOATING_POINT)].groupby("model")["wbits"].nunique()
    single = widths.index[widths == 1]
    return table if len(single) == len(widths) else table[~table["model"].isin(single)]


def paper_curves(paper: pandas.DataFrame, sweep: str) -> pandas.DataFrame:
    """The paper's curves of a sweep, which have no intervals, as `curves`; `paper` as in `Records`."""
    numbers = paper[paper["table"].isin([sweep, "fp32"])]
    if sweep == "weights":
        numbers = numbers[numbers["abits"] == FLOAT_BITS]
    numbers = numbers.assign(top1=numbers["paper_top1"].astype(float))
    floating = numbers[numbers["method"] == "fp32"].set_index("model")["top1"]
    return numbers.assign(change=numbers["top1"] - numbers["model"].map(floating)).reindex(columns=CURVE_COLUMNS)


def bit_width_figure(runs: list[dict], sweep: str = "both", paper: pandas.DataFrame | None = None) -> Figure:
    """The change of top-1 (points) from floating point, dashed, against bit-width, from the records of one data set;
    with paired 95% intervals where the records say which images were right.

    `sweep` is "weights" (activations in floating point) or "both". Without records of the sweep the figure is empty.
    With `paper`, as in `Records`, each network has the paper's curves in a panel of their own beside ours.
    """
    table = curves(runs, sweep)
    heading, width_label = HEADINGS[sweep]
    data = "; ".join(sorted({run["data"]["title"] for run in runs}))
    subtitle = f"{data}, paired 95% intervals" if table["change_interval"].notna().any() else data
    if paper is not None:
        subtitle = f"left: {subtitle}\nright: the paper's numbers on ImageNet"
    looks = styles(table["method"].unique())
    contents = _panels(table, None if paper is None else paper_curves(paper, sweep))
    columns = 1 if len(contents) < 2 else 2
    rows = max(1, -(-len(contents) // columns))
    figure = Figure(figsize=(INCHES, PANEL_INCHES * rows + 1.2), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    lowest = _lowest(pandas.concat(contents.values())) if contents else -1.0
    panels[0].set_ylim(1.15 * lowest, -0.08 * lowest)  # room for an interval, and for marks of what lies below
    for panel, (title, numbers) in zip(panels, contents.items(), strict=False):
        _draw_curves(panel, numbers, looks)
        panel.set_title(title)
        panel.set_xlabel(width_label)
        panel.set_ylabel("change of top-1 (points)")
        panel.tick_params(labelbottom=True, labelleft=True)
        panel.grid(axis="y", alpha=0.3)
    widths = sorted(table.loc[~table["method"].isin(FLOATING_POINT), "wbits"].unique())
    if widths:
        panels[0].set_xticks(range(widths[0], widths[-1] + 1))
        panels[0].set_xlim(widths[0] - 0.5, widths[-1] + 0.5)
    for panel in panels[len(contents) :]:
        panel.set_visible(False)
    figure.suptitle(f"{heading}\n{subtitle}")
    figure.legend(handles=legend_handles(looks), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _panels(ours: pandas.DataFrame, theirs: pandas.DataFrame | None) -> dict[str, pandas.DataFrame]:
    """The curves of each panel by its title, which says the accuracy in floating point."""
    sources = {"": ours} if theirs is None else {", ours": ours, ", the paper on ImageNet": theirs}
    panels = {}
    for model in ours["model"].unique():
        for whose, numbers in sources.items():
            numbers = numbers[numbers["model"] == model]
            floating = numbers.loc[numbers["method"] == "fp32", "top1"].iloc[0]
            panels[f"{model_title(model)}{whose}: floating point {floating:.2f}%"] = numbers
    return panels


def _lowest(table: pandas.DataFrame) -> float:
    """The lower end of the axis, in points."""
    worst = table[~table["method"].isin(FLOATING_POINT)].groupby("method")["change"].min().clip(upper=-0.3)
    return worst[worst >= _SHOWN * worst.max()].min()


def _draw_curves(panel: Axes, table: pandas.DataFrame, looks: dict[str, dict]) -> None:
    methods = [method for method in looks if method not in FLOATING_POINT]
    step = _SPREAD / max(len(methods) - 1, 2)
    for method, style in looks.items():
        cells = table[table["method"] == method]
        if cells.empty:
            continue
        name = f"{cells['model'].iloc[0]}-{method}"  # of the line's group in the SVG
        if method in FLOATING_POINT:
            panel.axhline(0, gid=name, **style)
            continue
        # Methods side by side, so that equal accuracies hide neither marker nor interval.
        cells = cells.set_index("wbits").reindex(sorted(WIDTHS))  # the line breaks where a bit-width has not run
        place = cells.index + (methods.index(method) - (len(methods) - 1) / 2) * step
        line, *_ = panel.errorbar(
            place, cells["change"], cells["change_interval"], capsize=3, capthick=1.5, markersize=5, **style
        )
        line.set_gid(name)
        for x, change in zip(place, cells["change"], strict=True):
            if change < panel.get_ylim()[0]:
                below = {"xycoords": panel.get_xaxis_transform(), "color": style["color"], "fontsize": 8}
                panel.annotate(f"▼ {change:.0f}".replace("-", "−"), (x, 0.02), **below)
