"""Table 5 of the paper: detectors × bit-widths, AP, AP50 and AP75 of boxes and masks."""

import numpy as np
import pandas

from bitsplit.report.accuracy import jackknife_interval
from bitsplit.report.cells import KEY
from bitsplit.report.records import Records
from bitsplit.report.render import Table
from bitsplit.report.texts import drop_text, methods_by_column, with_remarks
from bitsplit.report.titles import METHOD_TITLES, PAPER_DETECTORS, PAPER_PAIR, in_order, model_title
from bitsplit.settings import FLOAT_BITS

TABLE5_BITS = ((4, 8), (4, 6), (4, 4))  # (wbits, abits)
KINDS = {"bbox": "box", "segm": "mask"}
AP_NAMES = ("ap", "ap50", "ap75")
PLACE = [*KEY, "kind"]


def table5(records: Records) -> Table | None:
    """Floating point and every method at `TABLE5_BITS`; None without a record."""
    runs = [run for run in records.runs if "bbox_ap" in run["metrics"]["quantized"] and run["variant"] == ""]
    runs = [run for run in runs if (run["wbits"], run["abits"]) in TABLE5_BITS]
    if not runs:
        return None
    table = _table5_cells(records, runs)
    caption = (
        f"Table 5's detectors on {records.title}: COCO's AP / AP50 / AP75 in percent; in brackets the change of AP "
        "from floating point in points"
        + (" ± half width of its 95% interval (jackknife)" if table["drop_interval"].notna().any() else "")
        + (", and the paper's three numbers" if "paper_ap" in table else "")
    )
    columns = table["model"].map(model_title) + ", " + table["kind"].map(KINDS)
    return Table(caption, table, methods_by_column(table, columns, table.apply(_ap_text, axis=1)), heads=2)


def _table5_cells(records: Records, runs: list[dict]) -> pandas.DataFrame:
    """One row a method, setting, network and kind; columns PLACE, ap, ap50, ap75, drop, seeds, paper_*, and the half
    widths of ap's and the drop's 95% intervals, over several seeds their means."""
    models = in_order([*PAPER_DETECTORS, *(run["model"] for run in runs)], PAPER_DETECTORS)
    kinds = [(model, kind) for model in models for kind in KINDS if (model, kind) != ("retinanet", "segm")]
    methods = in_order([*PAPER_PAIR, *(run["method"] for run in runs)], METHOD_TITLES)
    places = [(model, "fp32", FLOAT_BITS, FLOAT_BITS, kind) for model, kind in kinds]
    places += [(model, method, *bits, kind) for bits in TABLE5_BITS for method in methods for model, kind in kinds]
    columns = [*PLACE, "seed", *AP_NAMES, "drop", "ap_interval", "drop_interval"]
    rows = pandas.DataFrame([row for run in runs for row in _ap_rows(run)], columns=columns)
    groups = rows.drop_duplicates([*PLACE, "seed"]).groupby(PLACE, sort=False)
    means = groups[[*AP_NAMES, "drop", "ap_interval", "drop_interval"]].mean().assign(seeds=groups.size()).reset_index()
    table = pandas.DataFrame(places, columns=PLACE).merge(means, how="left", on=PLACE)
    if records.paper is not None:
        table = table.merge(records.paper, how="left", on=PLACE)
    table["seeds"] = table["seeds"].fillna(0).astype(int)
    return table.round(4)


def _ap_rows(run: dict) -> list[dict]:
    """The average precisions of a run and of its floating-point network, by kind."""
    quantized, fp32 = run["metrics"]["quantized"], run["metrics"]["fp32"]
    rows = []
    for kind in (kind for kind in KINDS if f"{kind}_ap" in quantized):
        numbers = {name: quantized[f"{kind}_{name}"] for name in AP_NAMES}
        numbers["drop"] = fp32[f"{kind}_ap"] - numbers["ap"]
        ours, theirs = (np.array(metrics.get(f"{kind}_ap_without", [])) for metrics in (quantized, fp32))
        if len(ours) and len(theirs):
            numbers |= {"ap_interval": jackknife_interval(ours), "drop_interval": jackknife_interval(theirs - ours)}
        rows.append({key: run[key] for key in (*KEY, "seed")} | {"kind": kind, **numbers})
        numbers = {name: fp32[f"{kind}_{name}"] for name in AP_NAMES}
        if len(theirs):
            numbers["ap_interval"] = jackknife_interval(theirs)
        bits = {"wbits": FLOAT_BITS, "abits": FLOAT_BITS, "seed": 0}
        rows.append({"model": run["model"], "method": "fp32", **bits, "kind": kind, **numbers})
    return rows


def _ap_text(cell: pandas.Series) -> str:
    number = " / ".join(f"{cell[name]:.1f}" for name in AP_NAMES) if cell["seeds"] else "not run"
    remarks = []
    if pandas.notna(cell["drop"]):
        remarks.append(drop_text(cell))
    if pandas.notna(cell.get("paper_ap")):
        remarks.append("paper " + " / ".join(str(cell[f"paper_{name}"]) for name in AP_NAMES))
    return with_remarks(number, remarks)
