"""Every record, one row each."""

import pandas

from bitsplit.report.accuracy import interval
from bitsplit.report.records import Records
from bitsplit.report.render import Table
from bitsplit.report.texts import number_text
from bitsplit.report.titles import METRIC_TITLES


def runs_table(records: Records) -> Table | None:
    """Accuracy with its interval, floating-point accuracy and the drops against it, or a detector's average precisions;
    None without a record.

    Without labels only the agreement with the floating-point network.
    """
    if not records.runs:
        return None
    detection = "bbox_ap" in records.runs[0]["metrics"]["quantized"]
    numbers_of = _precisions if detection else _accuracies
    table = pandas.DataFrame([_run_row(run, numbers_of(run)) for run in records.runs])
    what = (
        "COCO's AP in percent, drops" if detection else "top-1 and top-5 in percent, interval95 (half width) and drops"
    )
    caption = f"Every run on {records.title}: {what} in points"
    return Table(caption, table, table.astype(object).map(number_text))


def _run_row(run: dict, numbers: dict) -> dict:
    return {
        "model": run["model"],
        "method": run["method"] + (f" ({run['variant']})" if run["variant"] else ""),
        "wbits": run["wbits"],
        "abits": run["abits"],
        "seed": run["seed"],
        **numbers,
        "images": run["metrics"]["quantized"]["images"],
        "seconds": run["seconds"]["total"],
    }


def _accuracies(run: dict) -> dict:
    quantized, fp32, fp32_bn = (run["metrics"][key] for key in ("quantized", "fp32", "fp32_bn"))
    accuracy = quantized["top1"] is not None
    return {
        "top1": quantized["top1"],
        "interval95": round(interval(quantized["top1"], quantized["images"]), 2) if accuracy else None,
        "top5": quantized["top5"],
        "fp32": fp32["top1"],
        "fp32_bn": fp32_bn["top1"],
        "drop": round(fp32["top1"] - quantized["top1"], 2) if accuracy else None,
        "drop_bn": round(fp32_bn["top1"] - quantized["top1"], 2) if accuracy else None,
        "agreement": quantized["agreement"],
    }


def _precisions(run: dict) -> dict:
    quantized, fp32 = run["metrics"]["quantized"], run["metrics"]["fp32"]
    precisions = {name: quantized[name] for name in METRIC_TITLES if name in quantized}
    drops = {f"{name}_drop": fp32[name] - quantized[name] for name in ("bbox_ap", "segm_ap") if name in quantized}
    return {name: round(value, 4) for name, value in (precisions | drops).items()}
