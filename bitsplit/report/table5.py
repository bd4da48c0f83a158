"""Table 5 of the paper: detectors × bit-widths, AP, AP50 and AP75 of boxes and masks."""

import pandas

from bitsplit.report.cells import FLOAT_BITS, KEY
from bitsplit.report.folder import Folder
from bitsplit.report.render import Table
from bitsplit.report.texts import signed
from bitsplit.report.titles import METHOD_TITLES, in_order, method_title, model_title

SETTINGS = ((4, 8), (4, 6), (4, 4))  # (wbits, abits)
KINDS = {"bbox": "box", "segm": "mask"}
PRECISIONS = ("ap", "ap50", "ap75")
PAPER_MODELS = ("retinanet", "mask_rcnn")
_METHODS = ("tflite", "bitsplit")


def table5(folder: Folder) -> Table | None:
    """Floating point and every method at `SETTINGS`; None without a record."""
    runs = [run for run in folder.runs if "bbox_ap" in run["metrics"]["quantized"] and run["variant"] == ""]
    runs = [run for run in runs if (run["wbits"], run["abits"]) in SETTINGS]
    if not runs:
        return None
    cells = _cells(folder, runs)
    caption = (
        f"Table 5's detectors on {folder.title}: COCO's AP / AP50 / AP75 in percent; in brackets the change of AP from "
        "floating point in points" + (", and the paper's three numbers" if "paper_ap" in cells else "")
    )
    return Table(caption, cells, _shown(cells), heads=2)


def _cells(folder: Folder, runs: list[dict]) -> pandas.DataFrame:
    """One row a method, setting, network and kind; columns KEY, kind, ap, ap50, ap75, drop, seeds, paper_*."""
    models = in_order([*PAPER_MODELS, *(run["model"] for run in runs)], {name: "" for name in PAPER_MODELS})
    kinds = [(model, kind) for model in models for kind in KINDS if (model, kind) != ("retinanet", "segm")]
    methods = in_order([*_METHODS, *(run["method"] for run in runs)], METHOD_TITLES)
    plan = [(model, "fp32", FLOAT_BITS, FLOAT_BITS, kind) for model, kind in kinds]
    plan += [(model, method, *bits, kind) for bits in SETTINGS for method in methods for model, kind in kinds]
    rows = []
    for run in runs:
        quantized, fp32 = run["metrics"]["quantized"], run["metrics"]["fp32"]
        for kind in (kind for kind in KINDS if f"{kind}_ap" in quantized):
            numbers = {name: quantized[f"{kind}_{name}"] for name in PRECISIONS}
            drop = fp32[f"{kind}_ap"] - numbers["ap"]
            rows.append({key: run[key] for key in (*KEY, "seed")} | {"kind": kind, **numbers, "drop": drop})
            numbers = {name: fp32[f"{kind}_{name}"] for name in PRECISIONS}
            bits = {"wbits": FLOAT_BITS, "abits": FLOAT_BITS, "seed": 0}
            rows.append({"model": run["model"], "method": "fp32", **bits, "kind": kind, **numbers})
    found = pandas.DataFrame(rows).drop_duplicates([*KEY, "kind", "seed"]).groupby([*KEY, "kind"], sort=False)
    mean = found[[*PRECISIONS, "drop"]].mean().assign(seeds=found.size()).reset_index()
    table = pandas.DataFrame(plan, columns=[*KEY, "kind"]).merge(mean, how="left", on=[*KEY, "kind"])
    if folder.paper is not None:
        table = table.merge(folder.paper, how="left", on=[*KEY, "kind"])
    table["seeds"] = table["seeds"].fillna(0).astype(int)
    return table.round(4)


def _shown(table: pandas.DataFrame) -> pandas.DataFrame:
    """One row a setting and method, one column a network and kind."""
    bits = "A" + table["abits"].astype(str) + "W" + table["wbits"].astype(str)
    text = pandas.DataFrame(
        {
            "setting": bits.where(table["wbits"] != FLOAT_BITS, ""),
            "method": table["method"].map(method_title),
            "column": table["model"].map(model_title) + ", " + table["kind"].map(KINDS),
            "text": table.apply(_text, axis=1),
        }
    )
    wide = text.pivot_table("text", ["setting", "method"], "column", aggfunc="first", sort=False)
    return wide.rename_axis(columns=None).reset_index()


def _text(cell: pandas.Series) -> str:
    number = " / ".join(f"{cell[name]:.1f}" for name in PRECISIONS) if cell["seeds"] else "not run"
    beside = [signed(-cell["drop"])] if pandas.notna(cell["drop"]) else []
    if pandas.notna(cell.get("paper_ap")):
        beside.append("paper " + " / ".join(str(cell[f"paper_{name}"]) for name in PRECISIONS))
    return f"{number} ({'; '.join(beside)})" if beside else number
