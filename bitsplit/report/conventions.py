"""Bit-split and bit-split-plus under four conventions of what is quantized beside the middle layers' weights."""

import pandas

from bitsplit.report.cells import cells
from bitsplit.report.records import Records, labelled
from bitsplit.report.render import Table
from bitsplit.report.table4 import TABLE4_BITS
from bitsplit.report.texts import legend, methods_by_column, top1_text
from bitsplit.report.titles import METHOD_TITLES, in_order, model_title
from bitsplit.settings import CONVENTIONS, FLOAT_BITS

_VARIANTS = {"bitsplit": ""} | {name: f"convention={name}" for name in CONVENTIONS if name != "bitsplit"}


def table_conventions(records: Records) -> Table | None:
    """The methods that have run under other conventions than the paper's, at Table 4's bits; None without a record."""
    runs = [run for run in labelled(records.runs) if (run["wbits"], run["abits"]) in TABLE4_BITS]
    others = [run for run in runs if run["variant"] and run["variant"] in _VARIANTS.values()]
    if not others:
        return None
    methods = in_order((run["method"] for run in others), METHOD_TITLES)
    runs = [run for run in runs if run["method"] in methods and run["variant"] in _VARIANTS.values()]
    models = records.models(runs)
    places = [(model, method, *bits) for bits in TABLE4_BITS for method in methods for model in models]
    blocks = {"": cells([(model, "fp32", FLOAT_BITS, FLOAT_BITS) for model in models], runs)}
    for convention, variant in _VARIANTS.items():
        if found := [run for run in runs if run["variant"] == variant]:
            blocks[convention] = cells(places, found)
    table = pandas.concat([block.assign(convention=name) for name, block in blocks.items()], ignore_index=True)
    table.insert(0, "convention", table.pop("convention"))
    caption = f"Table 4's settings under four conventions on {records.title}: top-1 {legend(table)}"
    return Table(caption, table, pandas.concat(map(_shown, blocks, blocks.values()), ignore_index=True), heads=3)


def _shown(convention: str, block: pandas.DataFrame) -> pandas.DataFrame:
    shown = methods_by_column(block, block["model"].map(model_title), block.apply(top1_text, axis=1))
    shown.insert(0, "convention", convention)
    return shown
