"""How far the numbers measured on ImageNet are from the paper's, over all its tables."""

import pandas

from bitsplit.report.cells import FLOAT_BITS
from bitsplit.report.comparison import table4
from bitsplit.report.folder import Folder
from bitsplit.report.render import Table
from bitsplit.report.sweeps import table_both, table_weights
from bitsplit.report.texts import signed
from bitsplit.report.titles import method_title

_BLOCK = ["table", "wbits", "abits", "method"]  # the cells of a row, which differ in the network
_TABLES = {"table4": table4, "table_weights": table_weights, "table_both": table_both}


def against_paper(folder: Folder) -> Table | None:
    """Ours minus the paper's top-1 for each table, method and pair of bit-widths, over the networks.

    None without a record of a cell that the paper has, and where the paper's numbers are of other data.
    """
    made = {name: make(folder) for name, make in _TABLES.items()} if folder.paper is not None else {}
    cells = [table.cells.assign(table=name) for name, table in made.items() if table]
    found = pandas.concat(cells).dropna(subset="paper_top1") if cells else pandas.DataFrame({"seeds": []})
    if not (found["seeds"] > 0).any():
        return None
    rows = [dict(zip(_BLOCK, key, strict=True)) | _compared(group) for key, group in found.groupby(_BLOCK, sort=False)]
    caption = (
        f"Ours on {folder.title} minus the paper's on ImageNet: top-1 in points over the networks of which both have a "
        "number; inside: differences within the 95% interval of ours"
    )
    table = pandas.DataFrame(rows)
    return Table(caption, table, _shown(table), heads=2)


def _compared(cells: pandas.DataFrame) -> dict:
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


def _shown(table: pandas.DataFrame) -> pandas.DataFrame:
    bits = "W" + table["wbits"].astype(str) + "A" + table["abits"].astype(str)
    run = table["run"] > 0
    return pandas.DataFrame(
        {
            "table": table["table"],
            "bits": bits.where(table["wbits"] != FLOAT_BITS, ""),
            "method": table["method"].map(method_title),
            "networks run": table["run"].astype(str) + " of " + table["paper"].astype(str),
            **{name: table[name].map(signed).where(run, "–") for name in ("mean", "least", "greatest")},
            "inside": table["inside"].astype(str).where(run, "–"),
        }
    )
