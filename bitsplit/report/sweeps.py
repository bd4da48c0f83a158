"""The paper's two sweeps over bit-widths 8 to 3: weights alone ("weights"), and weights and activations ("both")."""

import pandas

from . import comparison
from .cells import FLOAT_BITS, cells
from .folder import Folder, standard
from .render import Table
from .texts import legend, top1_text, top5_text
from .titles import FLOATING_POINT, METHOD_TITLES, in_order, method_title, model_title

WIDTHS = (8, 7, 6, 5, 4, 3)
SETTINGS = {  # (wbits, abits)
    "weights": [(bits, abits) for abits in (FLOAT_BITS, 8) for bits in WIDTHS],
    "both": [(bits, bits) for bits in WIDTHS],
}
PAPER_METHODS = ("tflite", "bitsplit")
_TITLES = {
    "weights": "Weights at 8 to 3 bits, activations in floating point or at 8 bits,",
    "both": "Weights and activations at 8 to 3 bits",
}


def table_weights(folder: Folder) -> Table | None:
    """Weights at 8 to 3 bits, activations in floating point and at 8 bits; None without a record."""
    return _table(folder, "weights")


def table_both(folder: Folder) -> Table | None:
    """Weights and activations at the same 8 to 3 bits; None without a record."""
    return _table(folder, "both")


def runs_of(runs: list[dict], sweep: str) -> list[dict]:
    """The runs of a sweep, with the methods' own settings.

    Beside the paper's two methods only those that were swept: a cell of Table 4 alone does not make a sweep.
    """
    found = [run for run in standard(runs) if (run["wbits"], run["abits"]) in SETTINGS[sweep]]
    swept = {run["method"] for run in found if (run["wbits"], run["abits"]) not in comparison.SETTINGS}
    return [run for run in found if run["method"] in {*PAPER_METHODS, *swept}]


def sweep_cells(models: list[str], runs: list[dict], sweep: str, paper: pandas.DataFrame | None) -> pandas.DataFrame:
    """One row a cell: for each network floating point, then from many bits to few every method."""
    methods = in_order([*PAPER_METHODS, *(run["method"] for run in runs)], METHOD_TITLES)
    plan = []
    for model in models:
        plan.append((model, "fp32", FLOAT_BITS, FLOAT_BITS))
        plan += [(model, method, *bits) for bits in SETTINGS[sweep] for method in methods]
    return cells(plan, runs, paper)


def _table(folder: Folder, sweep: str) -> Table | None:
    runs = runs_of(folder.runs, sweep)
    if not runs:
        return None
    table = sweep_cells(folder.models(runs), runs, sweep, folder.paper_of(sweep))
    caption = f"{_TITLES[sweep]} on {folder.title}: top-1 and top-5 {legend(table)}"
    return Table(caption, table, _shown(table), heads=2)


def _shown(table: pandas.DataFrame) -> pandas.DataFrame:
    """One row a network and setting, one column a method and accuracy; floating point stands in all of them."""
    methods = [method for method in table["method"].unique() if method not in FLOATING_POINT]
    rows = []
    for (model, wbits, abits), group in table.groupby(["model", "wbits", "abits"], sort=False):
        found = {cell["method"]: cell for _, cell in group.iterrows()}
        floating_point = found.get("fp32")
        row = {
            "network": model_title(model),
            "bits": f"W{wbits}A{abits}" if floating_point is None else "floating point",
        }
        for metric, text in (("top-1", top1_text), ("top-5", top5_text)):
            for method in methods:
                cell = found[method] if floating_point is None else floating_point
                row[f"{method_title(method)} {metric}"] = text(cell)
        rows.append(row)
    return pandas.DataFrame(rows)
