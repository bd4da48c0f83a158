"""Table 4 of the paper, methods × networks at A8W4 and A4W4, and the same on equal terms."""

import re
from collections.abc import Iterator

import pandas

from bitsplit.report.cells import KEY, cells, measured_cells
from bitsplit.report.records import Records, labelled, of_papers_tables, standard
from bitsplit.report.render import Table
from bitsplit.report.texts import legend, methods_by_column, signed, top1_text
from bitsplit.report.titles import METHOD_TITLES, PAPER_METHODS, in_order, method_title, model_title
from bitsplit.settings import FLOAT_BITS

TABLE4_BITS = ((4, 8), (4, 4))  # (wbits, abits)
EDGES = ("first_wbits", "last_wbits", "last_abits")
# In a variant: more than the terms that are made equal.
_UNEQUAL = re.compile(r"(^|-)(calibration\.|method\.|data\.|convention=)")


def table4(records: Records) -> Table | None:
    """Every method with its own settings; None without a record."""
    runs = _of_table4(standard(records.runs))
    if not runs:
        return None
    table = _table4_cells(records, runs)
    caption = f"Table 4's methods and networks on {records.title}: top-1 {legend(table)}"
    return Table(caption, table, _methods_by_network(table), heads=2)


def table4_equal(records: Records) -> Table | None:
    """Every method with bit-split's batch-norm re-estimation and with the first and the last layer at 8 bits.

    Drops are against the floating-point network with that re-estimation. None without a record.
    """
    runs = equal_runs(records.runs)
    if not runs:
        return None
    table = _table4_cells(records, runs, "fp32_bn")
    terms = ", ".join(f"{key}={value}" for key, value in _batch_norm(runs[0]).items())
    caption = (
        f"Table 4 on equal terms on {records.title}: every method, and floating point, with the same batch-norm "
        f"re-estimation ({terms}), first and last layer at 8 bits; top-1 {legend(table)}"
    )
    notes = []
    if standard_runs := _of_table4(standard(records.runs)):
        equal_already = {run["method"] for run in runs if run["variant"] == ""}
        blocks = (_table4_cells(records, block) for block in _of_same_seeds(standard_runs, runs))
        notes = _notes(*blocks, equal_already)
    return Table(caption, table, _methods_by_network(table), heads=2, notes=tuple(notes))


def equal_runs(runs: list[dict]) -> list[dict]:
    """The runs at `TABLE4_BITS`, of whatever variant, with re-estimated batch-norm and 8 bits in first and last layer.

    All have exactly one re-estimation, that of bit-split's own settings; where bit-split has no record, "reestimate"
    before "shift". A variant in calibration, in the method's own fields or with bits for some layers is not on equal
    terms.
    """
    reestimated = [run for run in labelled(runs) if _batch_norm(run)["mode"] != "none"]
    equal = [
        run
        for run in _of_table4(reestimated)
        if all(run["config"]["bits"][edge] == 8 for edge in EDGES)
        and not run["config"]["layers"]["bits"]
        and not _UNEQUAL.search(run["variant"])
    ]
    bit_splits = [run for run in standard(reestimated) if run["method"] == "bitsplit"]
    terms = bit_splits or sorted(equal, key=lambda run: _batch_norm(run)["mode"])
    return [run for run in equal if _batch_norm(run) == _batch_norm(terms[0])]


def _of_same_seeds(*blocks: list[dict]) -> Iterator[list[dict]]:
    """Of each block the runs whose cell and seed all blocks have: chance of the seed is then the same in all."""
    keys = [[tuple(run[key] for key in (*KEY, "seed")) for run in runs] for runs in blocks]
    shared = set.intersection(*map(set, keys))
    for runs, own in zip(blocks, keys, strict=True):
        yield [run for run, key in zip(runs, own, strict=True) if key in shared]


def _batch_norm(run: dict) -> dict:
    return run["config"]["batch_norm"]


def _of_table4(runs: list[dict]) -> list[dict]:
    return [run for run in of_papers_tables(runs) if (run["wbits"], run["abits"]) in TABLE4_BITS]


def _table4_cells(records: Records, runs: list[dict], floating_point: str = "fp32") -> pandas.DataFrame:
    models = records.models(runs)
    methods = in_order([*PAPER_METHODS, *(run["method"] for run in runs)], METHOD_TITLES)
    places = [(model, floating_point, FLOAT_BITS, FLOAT_BITS) for model in models]
    places += [(model, method, *bits) for bits in TABLE4_BITS for method in methods for model in models]
    paper = records.paper_of("table4") if floating_point == "fp32" else None  # the paper has no table on equal terms
    return cells(places, runs, paper, floating_point)


def _methods_by_network(table: pandas.DataFrame) -> pandas.DataFrame:
    return methods_by_column(table, table["model"].map(model_title), table.apply(top1_text, axis=1))


def _notes(standard_cells: pandas.DataFrame, equal_cells: pandas.DataFrame, equal_already: set[str]) -> list[str]:
    """Per setting: what each method gains over its own settings, mean over networks, and whether the order changes.

    Methods of `equal_already` are on equal terms by their own settings.
    """
    both = measured_cells(standard_cells).merge(measured_cells(equal_cells), on=KEY, suffixes=("", "_equal"))
    both["gain"] = both["top1_equal"] - both["top1"]
    notes = []
    for (wbits, abits), block in both.groupby(["wbits", "abits"], sort=False):
        setting = f"A{abits}W{wbits}"
        changed = block[~block["method"].isin(equal_already)]
        gains = changed.groupby("method", sort=False)["gain"].agg(["mean", "size"])
        for networks, group in gains.groupby("size"):
            listed = ", ".join(f"{method_title(name)} {signed(gain)}" for name, gain in group["mean"].items())
            over = f"mean over {networks} networks" if networks > 1 else "1 network"
            notes.append(f"{setting}, gain in top-1 over table4 in points ({over}): {listed}.")
        notes += _order(setting, block)
    if same := in_order(equal_already & set(both["method"]), METHOD_TITLES):
        notes.append(f"Unchanged, being the same records as in table4: {', '.join(map(method_title, same))}.")
    return notes


def _order(setting: str, block: pandas.DataFrame) -> list[str]:
    """The order of methods by mean top-1 over the networks that most of them have; of those that have all these."""
    pivot = block.pivot(index="model", columns="method", values=["top1", "top1_equal"])
    complete = pivot[pivot.notna().mean(axis=1) > 0.5].dropna(axis=1)
    if complete.empty or len(complete.columns) < 4:  # two numbers of two methods
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
