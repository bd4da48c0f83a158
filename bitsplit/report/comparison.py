"""Table 4 of the paper, methods × networks at A8W4 and A4W4, and the same on equal terms."""

import re

import pandas

from bitsplit.report.cells import FLOAT_BITS, KEY, cells, measured_cells
from bitsplit.report.folder import Folder, labelled, standard
from bitsplit.report.render import Table
from bitsplit.report.texts import legend, signed, top1_text
from bitsplit.report.titles import METHOD_TITLES, PAPER_METHODS, in_order, method_title, model_title

SETTINGS = ((4, 8), (4, 4))  # (wbits, abits)
_EDGES = ("first_wbits", "last_wbits", "last_abits")
_UNEQUAL = re.compile(r"(^|-)(calibration|method)\.")  # in a variant: more than the terms that are made equal


def table4(folder: Folder) -> Table | None:
    """Every method with its own settings; None without a record."""
    runs = _in_settings(standard(folder.runs))
    if not runs:
        return None
    table = _cells(folder, runs)
    caption = f"Table 4's methods and networks on {folder.title}: top-1 {legend(table)}"
    return Table(caption, table, _shown(table), heads=2)


def table4_equal(folder: Folder) -> Table | None:
    """Every method with bit-split's batch-norm re-estimation and with the first and the last layer at 8 bits.

    Drops are against the floating-point network with that re-estimation. None without a record.
    """
    runs = equal_runs(folder.runs)
    if not runs:
        return None
    table = _cells(folder, runs, "fp32_bn")
    terms = ", ".join(f"{key}={value}" for key, value in _batch_norm(runs[0]).items())
    caption = (
        f"Table 4 on equal terms on {folder.title}: every method, and floating point, with the same batch-norm "
        f"re-estimation ({terms}), first and last layer at 8 bits; top-1 {legend(table)}"
    )
    own = _in_settings(standard(folder.runs))
    notes = _notes(_cells(folder, own), table, {run["method"] for run in runs if run["variant"] == ""}) if own else ()
    return Table(caption, table, _shown(table), heads=2, notes=tuple(notes))


def equal_runs(runs: list[dict]) -> list[dict]:
    """The runs at `SETTINGS`, of whatever variant, with re-estimated batch-norm and 8 bits in first and last layer.

    All have exactly one re-estimation, that of bit-split's own settings; where bit-split has no record, "reestimate"
    before "shift". A variant in calibration or in the method's own fields is not on equal terms.
    """
    found = [run for run in labelled(runs) if _batch_norm(run)["mode"] != "none"]
    equal = [
        run
        for run in _in_settings(found)
        if all(run["config"]["bits"][edge] == 8 for edge in _EDGES) and not _UNEQUAL.search(run["variant"])
    ]
    own = [run for run in standard(found) if run["method"] == "bitsplit"]
    terms = own or sorted(equal, key=lambda run: _batch_norm(run)["mode"])
    return [run for run in equal if _batch_norm(run) == _batch_norm(terms[0])]


def _batch_norm(run: dict) -> dict:
    return run["config"]["batch_norm"]


def _in_settings(runs: list[dict]) -> list[dict]:
    return [run for run in runs if (run["wbits"], run["abits"]) in SETTINGS]


def _cells(folder: Folder, runs: list[dict], floating_point: str = "fp32") -> pandas.DataFrame:
    models = folder.models(runs)
    methods = in_order([*PAPER_METHODS, *(run["method"] for run in runs)], METHOD_TITLES)
    plan = [(model, floating_point, FLOAT_BITS, FLOAT_BITS) for model in models]
    plan += [(model, method, *bits) for bits in SETTINGS for method in methods for model in models]
    paper = folder.paper_of("table4") if floating_point == "fp32" else None  # the paper has no table on equal terms
    return cells(plan, runs, paper, floating_point)


def _shown(table: pandas.DataFrame) -> pandas.DataFrame:
    """One row a setting and method, one column a network."""
    bits = "A" + table["abits"].astype(str) + "W" + table["wbits"].astype(str)
    text = pandas.DataFrame(
        {
            "setting": bits.where(table["wbits"] != FLOAT_BITS, ""),
            "method": table["method"].map(method_title),
            "model": table["model"].map(model_title),
            "text": table.apply(top1_text, axis=1),
        }
    )
    wide = text.pivot_table("text", ["setting", "method"], "model", aggfunc="first", sort=False)
    return wide.rename_axis(columns=None).reset_index()


def _notes(own: pandas.DataFrame, equal: pandas.DataFrame, already: set[str]) -> list[str]:
    """Per setting: what each method gains over its own settings, mean over networks, and whether the order changes.

    Methods of `already` are on equal terms by their own settings.
    """
    both = measured_cells(own).merge(measured_cells(equal), on=KEY, suffixes=("", "_equal"))
    both["gain"] = both["top1_equal"] - both["top1"]
    notes = []
    for (wbits, abits), found in both.groupby(["wbits", "abits"], sort=False):
        setting = f"A{abits}W{wbits}"
        gains = found[~found["method"].isin(already)].groupby("method", sort=False)["gain"].agg(["mean", "size"])
        for networks, group in gains.groupby("size"):
            listed = ", ".join(f"{method_title(name)} {signed(gain)}" for name, gain in group["mean"].items())
            over = f"mean over {networks} networks" if networks > 1 else "1 network"
            notes.append(f"{setting}, gain in top-1 over table4 in points ({over}): {listed}.")
        notes += _order(setting, found)
    if shared := in_order(already & set(both["method"]), METHOD_TITLES):
        notes.append(f"Unchanged, being the same records as in table4: {', '.join(map(method_title, shared))}.")
    return notes


def _order(setting: str, found: pandas.DataFrame) -> list[str]:
    """The order of methods by mean top-1 over the networks that all of them have; nothing for a single method."""
    complete = found.pivot(index="model", columns="method", values=["top1", "top1_equal"]).dropna()
    if found["method"].nunique() < 2 or complete.empty:
        return []
    before, after = (
        " > ".join(
            method_title(name) for name in complete[column].mean().sort_values(ascending=False, kind="stable").index
        )
        for column in ("top1", "top1_equal")
    )
    over = f"mean of {len(complete)} networks" if len(complete) > 1 else "1 network"
    ranked = f"{setting}, methods ranked by top-1 ({over}), whatever the intervals"
    return [f"{ranked}: still {after}." if before == after else f"{ranked}: {before} becomes {after}."]
