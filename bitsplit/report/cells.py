"""The numbers of a table: one row a cell, whatever the table looks like."""

import numpy as np
import pandas

from bitsplit.report.accuracy import interval, paired_interval
from bitsplit.report.paired import answers_of
from bitsplit.report.titles import FLOATING_POINT
from bitsplit.settings import FLOAT_BITS

KEY = ["model", "method", "wbits", "abits"]
COLUMNS = [
    *KEY,
    "seeds",
    "images",
    "top1",
    "top1_interval",
    "top1_spread",
    "top5",
    "top5_interval",
    "drop",
    "drop_interval",
    "paper_top1",
    "difference",
    "paper_top5",
    "difference_top5",
]


def cells(
    places: list[tuple], runs: list[dict], paper: pandas.DataFrame | None = None, floating_point: str = "fp32"
) -> pandas.DataFrame:
    """One row a cell for each of `places`, tuples (model, method, wbits, abits), in their order; columns are `COLUMNS`.

    Accuracies in percent, intervals (half width), drops and differences in points; over several seeds all are of the
    means, and `top1_spread` is the standard deviation. A cell without a record has no seeds and no numbers. Drops are
    against the `floating_point` network, which is a method of the places too: "fp32", or "fp32_bn" with re-estimated
    batch-norm; their interval is the paired one, of records that say which images were right.
    """
    table = pandas.DataFrame(places, columns=KEY).merge(_means(runs, floating_point), how="left", on=KEY)
    table["seeds"] = table["seeds"].fillna(0).astype(int)
    table["images"] = table["images"].astype("Int64")
    if paper is not None:
        table = table.merge(paper, how="left", on=KEY)
    table = table.reindex(columns=COLUMNS)
    for metric, difference in (("top1", "difference"), ("top5", "difference_top5")):
        table[difference] = table[metric] - table[f"paper_{metric}"].astype(float)
    return table.round(4)


def measured_cells(table: pandas.DataFrame) -> pandas.DataFrame:
    """The rows of `table` that stand for quantized networks with a record."""
    return table[(table["seeds"] > 0) & ~table["method"].isin(FLOATING_POINT)]


def _means(runs: list[dict], floating_point: str) -> pandas.DataFrame:
    """Means over the seeds of each cell that has a record, the floating-point networks' included, with intervals."""
    rows = []
    for run in runs:
        quantized, reference = (run["metrics"][network] for network in ("quantized", floating_point))
        lost = {"drop": reference["top1"] - quantized["top1"], "lost": _lost(reference, quantized)}
        rows.append({key: run[key] for key in (*KEY, "seed")} | _accuracy(quantized) | lost)
        # Nothing but re-estimation makes the floating-point network depend on the seed.
        seed = run["seed"] if floating_point == "fp32_bn" and run["batch_norm"] == "reestimate" else 0
        bits = {"wbits": FLOAT_BITS, "abits": FLOAT_BITS}
        place = {"model": run["model"], "method": floating_point, **bits, "seed": seed}
        rows.append(place | _accuracy(reference) | {"drop": None, "lost": None})
    groups = pandas.DataFrame(rows).drop_duplicates([*KEY, "seed"]).groupby(KEY, sort=False)
    table = groups.agg(
        seeds=("seed", "size"),
        images=("images", "first"),
        top1=("top1", "mean"),
        top1_spread=("top1", "std"),
        top5=("top5", "mean"),
        drop=("drop", "mean"),
        drop_interval=("lost", _drop_interval),
    ).reset_index()
    for metric in ("top1", "top5"):
        table[f"{metric}_interval"] = [interval(*cell) for cell in zip(table[metric], table["images"], strict=True)]
    return table


def _lost(reference: dict, quantized: dict) -> np.ndarray | None:
    """By image (images,): 1 where only the first of two networks is right, −1 where only the second is."""
    first, second = answers_of(reference), answers_of(quantized)
    if first is None or second is None or len(first) != len(second):  # one has skipped images
        return None
    return first.astype(float) - second


def _drop_interval(lost: pandas.Series) -> float:
    alike = not lost.isna().any() and len(set(map(len, lost))) == 1
    return paired_interval(np.mean(lost.tolist(), axis=0)) if alike else np.nan


def _accuracy(metrics: dict) -> dict:
    return {name: metrics[name] for name in ("images", "top1", "top5")}
