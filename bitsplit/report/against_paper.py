"""How far the numbers measured on ImageNet are from the paper's, over all its tables."""

import pandas

from bitsplit.report.records import Records
from bitsplit.report.render import Table
from bitsplit.report.sweeps import table_both, table_weights
from bitsplit.report.table4 import table4
from bitsplit.report.texts import bits_text, signed
from bitsplit.report.titles import method_title

_ROW_KEY = ["table", "wbits", "abits", "method"]  # the cells of a row, which differ in the network
_COMPARED = {"table4": table4, "table_weights": table_weights, "table_both": table_both}


def against_paper(records: Records) -> Table | None:
    """Ours minus the paper's top-1 for each table, method and pair of bit-widths, over the networks.

    None without a record of a cell that the paper has, and where the paper's numbers are of other data.
    """
    tables = {name: table_of(records) for name, table_of in _COMPARED.items()} if records.paper is not None else {}
    cells = [table.cells.assign(table=name) for name, table in tables.items() if table]
    both = pandas.concat(cells).dropna(subset="paper_top1") if cells else pandas.DataFrame({"seeds": []})
    if not (both["seeds"] > 0).any():
        return None
    blocks = both.groupby(_ROW_KEY, sort=False)
    table = pandas.DataFrame([dict(zip(_ROW_KEY, key, strict=True)) | _differences(block) for key, block in blocks])
    caption = (
        f"Ours on {records.title} minus the paper's on ImageNet: top-1 in points over the networks of which both have "
        "a number; inside: differences within the 95% interval of ours"
    )
    return Table(caption, table, _readable(table), heads=2)


def _differences(cells: pandas.DataFrame) -> dict:
    run = cells.dropna(subset="difference")
    difference = run["difference"]
    return {
        "paper": len(cells),
        "run": len(run),
        "mean": round(difference.mean(), 4),
        "least": difference.min(),
        "greatest": difference.max(),
        "inside": int((difference.abs() <= run["top1_interval"]).sum()),
    }


def _readable(table: pandas.DataFrame) -> pandas.DataFrame:
    run = table["run"] > 0
    return pandas.DataFrame(
        {
            "table": table["table"],
            "bits": bits_text(table),
            "method": table["method"].map(method_title),
            "networks run": table["run"].astype(str) + " of " + table["paper"].astype(str),
            **{name: table[name].map(signed).where(run, "–") for name in ("mean", "least", "greatest")},
            "inside": table["inside"].astype(str).where(run, "–"),
        }
    )
