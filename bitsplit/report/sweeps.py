"""The paper's two sweeps over bit-widths 8 to 3, weights alone ("weights") and weights and activations ("both"),
and what it leaves out: weights at 2 bits ("two")."""

import pandas

from bitsplit.report.cells import cells
from bitsplit.report.records import Records, of_papers_tables, standard
from bitsplit.report.render import Table
from bitsplit.report.table4 import TABLE4_BITS
from bitsplit.report.texts import bits_text, legend, top1_text, top5_text
from bitsplit.report.titles import METHOD_TITLES, PAPER_PAIR, in_order, method_title, model_title
from bitsplit.settings import FLOAT_BITS

WIDTHS = (8, 7, 6, 5, 4, 3)
SWEEP_BITS = {  # (wbits, abits)
    "weights": [(bits, abits) for abits in (FLOAT_BITS, 8) for bits in WIDTHS],
    "both": [(bits, bits) for bits in WIDTHS],
    "two": [(2, bits) for bits in (FLOAT_BITS, 8, 4)],
}
_CAPTIONS = {
    "weights": "Weights at 8 to 3 bits, activations in floating point or at 8 bits,",
    "both": "Weights and activations at 8 to 3 bits",
    "two": "Weights at 2 bits, three values (−α, 0, α) on the paper's grid and four on a mid-rise one,",
}


def table_weights(records: Records) -> Table | None:
    """Weights at 8 to 3 bits, activations in floating point and at 8 bits; None without a record."""
    return _sweep_table(records, "weights")


def table_both(records: Records) -> Table | None:
    """Weights and activations at the same 8 to 3 bits; None without a record."""
    return _sweep_table(records, "both")


def table_two_bits(records: Records) -> Table | None:
    """Weights at 2 bits, activations in floating point, at 8 and at 4 bits; None without a record."""
    return _sweep_table(records, "two")


def sweep_runs(runs: list[dict], sweep: str) -> list[dict]:
    """The runs of a sweep, with the methods' own settings.

    Beside the paper's two methods only those that were swept: a cell of Table 4 alone does not make a sweep.
    """
    runs = [run for run in standard(of_papers_tables(runs)) if (run["wbits"], run["abits"]) in SWEEP_BITS[sweep]]
    swept = {run["method"] for run in runs if (run["wbits"], run["abits"]) not in TABLE4_BITS}
    return [run for run in runs if run["method"] in {*PAPER_PAIR, *swept}]


def sweep_cells(models: list[str], runs: list[dict], sweep: str, paper: pandas.DataFrame | None) -> pandas.DataFrame:
    """One row a cell: for each network floating point, then from many bits to few every method."""
    methods = in_order([*PAPER_PAIR, *(run["method"] for run in runs)], METHOD_TITLES)
    places = []
    for model in models:
        places.append((model, "fp32", FLOAT_BITS, FLOAT_BITS))
        places += [(model, method, *bits) for bits in SWEEP_BITS[sweep] for method in methods]
    return cells(places, runs, paper)


def _sweep_table(records: Records, sweep: str) -> Table | None:
    runs = sweep_runs(records.runs, sweep)
    if not runs:
        return None
    table = sweep_cells(records.models(runs), runs, sweep, records.paper_of(sweep))
    caption = f"{_CAPTIONS[sweep]} on {records.title}: top-1 and top-5 {legend(table)}"
    return Table(caption, table, _row_a_cell(table), heads=2)


def _row_a_cell(table: pandas.DataFrame) -> pandas.DataFrame:
    """Top-1 beside top-5."""
    return pandas.DataFrame(
        {
            "network": table["model"].map(model_title),
            "bits": bits_text(table),
            "method": table["method"].map(method_title),
            "top-1": table.apply(top1_text, axis=1),
            "top-5": table.apply(top5_text, axis=1),
        }
    )
