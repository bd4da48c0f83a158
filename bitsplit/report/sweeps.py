"""The paper's two sweeps over bit-widths 8 to 3: weights alone ("weights"), and weights and activations ("both")."""

import pandas

from bitsplit.report import comparison
from bitsplit.report.cells import FLOAT_BITS, cells
from bitsplit.report.folder import Folder, standard
from bitsplit.report.render import Table
from bitsplit.report.texts import legend, top1_text, top5_text
from bitsplit.report.titles import METHOD_TITLES, in_order, method_title, model_title

WIDTHS = (8, 7, 6, 5, 4, 3)
SETTINGS = {  # (wbits, abits)
    "weights": [(bits, abits) for abits in (FLOAT_BITS, 8) for bits in WIDTHS],
    "both": [(bits, bits) for bits in WIDTHS],
}
SWEPT_BY_PAPER = ("tflite", "bitsplit")
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
    return [run for run in found if run["method"] in {*SWEPT_BY_PAPER, *swept}]


def sweep_cells(models: list[str], runs: list[dict], sweep: str, paper: pandas.DataFrame | None) -> pandas.DataFrame:
    """One row a cell: for each network floating point, then from many bits to few every method."""
    methods = in_order([*SWEPT_BY_PAPER, *(run["method"] for run in runs)], METHOD_TITLES)
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
    """One row a cell, top-1 beside top-5."""
    bits = "W" + table["wbits"].astype(str) + "A" + table["abits"].astype(str)
    return pandas.DataFrame(
        {
            "network": table["model"].map(model_title),
            "bits": bits.where(table["wbits"] != FLOAT_BITS, ""),
            "method": table["method"].map(method_title),
            "top-1": table.apply(top1_text, axis=1),
            "top-5": table.apply(top5_text, axis=1),
        }
    )
