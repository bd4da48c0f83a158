"""Figure: average precision of detectors against the bit-width of the activations, from the records of Table 5."""

import pandas
from matplotlib.figure import Figure

from bitsplit.report.records import Records
from bitsplit.report.styles import INCHES, PANEL_INCHES, legend_handles, styles
from bitsplit.report.table5 import KINDS, TABLE5_BITS, table5
from bitsplit.report.titles import FLOATING_POINT, model_title

PRECISION_COLUMNS = ["model", "kind", "method", "wbits", "abits", "seeds", "ap", "ap_interval"]


def precision_curves(runs: list[dict]) -> pandas.DataFrame:
    """What the figure draws: columns `PRECISION_COLUMNS`, AP in percent; only cells with records."""
    table = table5(Records("", runs))
    if table is None:
        return pandas.DataFrame(columns=PRECISION_COLUMNS)
    return table.cells.loc[table.cells["seeds"] > 0, PRECISION_COLUMNS]


def detector_figure(runs: list[dict]) -> Figure:
    """One panel a network and kind, one line a method with 95% intervals, floating point dashed; 4-bit weights."""
    table = precision_curves(runs)
    looks = styles(table["method"].unique())
    groups = table.groupby(["model", "kind"], sort=False)
    figure = Figure(figsize=(INCHES, PANEL_INCHES + 1.2), layout="constrained")
    panels = figure.subplots(1, len(groups), sharex=True, squeeze=False).ravel()
    widths = sorted(abits for _, abits in TABLE5_BITS)
    for panel, ((model, kind), cells) in zip(panels, groups, strict=True):
        for method, style in looks.items():
            line = cells[cells["method"] == method].sort_values("abits")
            if line.empty:
                continue
            if method in FLOATING_POINT:
                panel.axhline(line["ap"].iloc[0], **style)
            else:
                panel.errorbar(line["abits"], line["ap"], line["ap_interval"], capsize=3, **style)
        panel.set_title(f"{model_title(model)}, {KINDS[kind]}")
        panel.set_xlabel("activations (bits)")
        panel.set_ylabel("AP (%)")
        panel.set_xticks(widths)
        panel.set_xlim(widths[0] - 0.5, widths[-1] + 0.5)
        panel.grid(axis="y", alpha=0.3)
    data = "; ".join(sorted({run["data"]["title"] for run in runs}))
    figure.suptitle(f"Average precision with weights at 4 bits\n{data}")
    figure.legend(handles=legend_handles(looks), loc="outside lower center", ncols=4, frameon=False)
    return figure
