"""Depthwise networks that are in none of the paper's tables: methods at A8W8, A8W4 and A4W4."""

from bitsplit.report.cells import cells
from bitsplit.report.records import Records, standard
from bitsplit.report.render import Table
from bitsplit.report.texts import legend, methods_by_column, top1_text
from bitsplit.report.titles import DEPTHWISE_CLASSIFIERS, METHOD_TITLES, in_order, model_title
from bitsplit.settings import FLOAT_BITS

_BITS = ((8, 8), (4, 8), (4, 4))  # (wbits, abits)


def depthwise(records: Records) -> Table | None:
    """Every method that has run, with its own settings; None without a record of such a network."""
    runs = [
        run
        for run in standard(records.runs)
        if run["model"] in DEPTHWISE_CLASSIFIERS and (run["wbits"], run["abits"]) in _BITS
    ]
    if not runs:
        return None
    models = in_order((run["model"] for run in runs), DEPTHWISE_CLASSIFIERS)
    methods = in_order((run["method"] for run in runs), METHOD_TITLES)
    places = [(model, "fp32", FLOAT_BITS, FLOAT_BITS) for model in models]
    places += [(model, method, *bits) for bits in _BITS for method in methods for model in models]
    table = cells(places, runs)
    shown = methods_by_column(table, table["model"].map(model_title), table.apply(top1_text, axis=1))
    return Table(f"Depthwise networks with hard-swish on {records.title}: top-1 {legend(table)}", table, shown, heads=2)
