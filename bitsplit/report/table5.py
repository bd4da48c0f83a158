"""Table 5 of the paper: detectors × bit-widths, AP, AP50 and AP75 of boxes and masks."""

import pandas

from bitsplit.report.cells import KEY
from bitsplit.report.records import Records
from bitsplit.report.render import Table
from bitsplit.report.texts import methods_by_column, signed, with_remarks
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
        "from floating point in points" + (", and the paper's three numbers" if "paper_ap" in table else "")
    )
    columns = table["model"].map(model_title) + ", " + table["kind"].map(KINDS)
    return Table(caption, table, methods_by_column(table, columns, table.apply(_ap_text, axis=1)), heads=2)


def _table5_cells(records: Records, runs: list[dict]) -> pandas.DataFrame:
    """One row a method, setting, network and kind; columns PLACE, ap, ap50, ap75, drop, seeds, paper_*."""
    models = in_order([*PAPER_DETECTORS, *(run["model"] for run in runs)], PAPER_DETECTORS)
    kinds = [(model, kind) for model in models for kind in KINDS if (model, kind) != ("retinanet", "segm")]
    methods = in_order([*PAPER_PAIR, *(run["method"] for run in runs)], METHOD_TITLES)
    places = [(model, "fp32", FLOAT_BITS, FLOAT_BITS, kind) for model, kind in kinds]
    places += [(model, method, *bits, kind) for bits in TABLE5_BITS for method in methods for model, kind in kinds]
    rows = [row for run in runs for row in _ap_rows(run)]
    groups = pandas.DataFrame(rows).drop_duplicates([*PLACE, "seed"]).groupby(PLACE, sort=False)
    means = groups[[*AP_NAMES, "drop"]].mean().assign(seeds=groups.size()).reset_index()
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
        drop = fp32[f"{kind}_ap"] - numbers["ap"]
        rows.append({key: run[key] for key in (*KEY, "seed")} | {"kind": kind, **numbers, "drop": drop})
        numbers = {name: fp32[f"{kind}_{name}"] for name in AP_NAMES}
        bits = {"wbits": FLOAT_BITS, "abits": FLOAT_BITS, "seed": 0}
        rows.append({"model": run["model"], "method": "fp32", **bits, "kind": kind, **numbers})
    return rows


def _ap_text(cell: pandas.Series) -> str:
    number = " / ".join(f"{cell[name]:.1f}" for name in AP_NAMES) if cell["seeds"] else "not run"
    remarks = [signed(-cell["drop"])] if pandas.notna(cell["drop"]) else []
    if pandas.notna(cell.get("paper_ap")):
        remarks.append("paper " + " / ".join(str(cell[f"paper_{name}"]) for name in AP_NAMES))
    return with_remarks(number, remarks)
