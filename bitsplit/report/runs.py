"""Every record, one row each."""

import pandas

from bitsplit.report.accuracy import interval
from bitsplit.report.folder import Folder
from bitsplit.report.render import Table


def runs_table(folder: Folder) -> Table | None:
    """Accuracy with its interval, floating-point accuracy and the drops against it; None without a record.

    Without labels only the agreement with the floating-point network.
    """
    if not folder.runs:
        return None
    table = pandas.DataFrame([_row(run) for run in folder.runs])
    caption = f"Every run on {folder.title}: top-1 and top-5 in percent, interval95 (half width) and drops in points"
    return Table(caption, table, table.astype(object).map(_text))


def _row(run: dict) -> dict:
    quantized, fp32, fp32_bn = (run["metrics"][key] for key in ("quantized", "fp32", "fp32_bn"))
    accuracy = quantized["top1"] is not None
    return {
        "model": run["model"],
        "method": run["method"] + (f" ({run['variant']})" if run["variant"] else ""),
        "wbits": run["wbits"],
        "abits": run["abits"],
        "seed": run["seed"],
        "top1": quantized["top1"],
        "interval95": round(interval(quantized["top1"], quantized["images"]), 2) if accuracy else None,
        "top5": quantized["top5"],
        "fp32": fp32["top1"],
        "fp32_bn": fp32_bn["top1"],
        "drop": round(fp32["top1"] - quantized["top1"], 2) if accuracy else None,
        "drop_bn": round(fp32_bn["top1"] - quantized["top1"], 2) if accuracy else None,
        "agreement": quantized["agreement"],
        "images": quantized["images"],
        "seconds": run["seconds"]["total"],
    }


def _text(value: object) -> str:
    if pandas.isna(value):
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
