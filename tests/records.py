"""Records of runs that never were, the reports made from them, and the committed ones."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
from conftest import ROOT

from bitsplit.answers import packed_answers
from bitsplit.report import record
from bitsplit.report.records import Records, imagenet_paper
from bitsplit.report.render import Table
from bitsplit.report.table4 import EDGES

RECORD_FILES = sorted((ROOT / "results").glob("*/runs/*.json"))
DATA_SETS = sorted({path.parts[-3] for path in RECORD_FILES})
PLACE = ("model", "method", "wbits", "abits", "seed", "variant")  # what a record's file is named after


def make_run(
    model="resnet18", method="bitsplit", wbits=4, abits=4, top1=80.0, seed=0, variant="", data="glyphs", **metrics
):
    """A record like a committed one, of any cell, that does not say which images were right; the batch-norm mode is
    that of `variant` or else the method's own.

    `metrics`: top-1 of the networks "fp32" (84.06) and "fp32_bn" (84.11).
    """
    run = json.loads((ROOT / "results/glyphs/runs/resnet18-bitsplit-w4a4-s0.json").read_text())
    prescribed = "reestimate" if method.startswith("bitsplit") else "none"
    mode = re.search(r"batch_norm\.mode=(\w+)", variant)
    edges = 32 if method == "lapq" and "bits." not in variant else 8
    run |= {"model": model, "method": method, "wbits": wbits, "abits": abits, "seed": seed, "variant": variant}
    run["batch_norm"] = run["config"]["batch_norm"]["mode"] = mode.group(1) if mode else prescribed
    run["config"]["bits"] |= {"wbits": wbits, "abits": abits} | dict.fromkeys(EDGES, edges)
    images = {"glyphs": 10_000, "imagenet": 50_000}.get(data, 500)
    run["data"] |= {"name": data, "title": f"{data} validation, {images:,} images"}
    for name, value in {"fp32": 84.06, "fp32_bn": 84.11, "quantized": top1}.items():
        value = metrics.get(name, value)
        run["metrics"][name] |= {"top1": value, "top5": min(value + 10, 100), "images": images}
        run["metrics"][name].pop("correct", None)
    return run


def answered(right: np.ndarray, reference: np.ndarray, **facts) -> dict:
    """A record of a network that has these images right; of its floating-point network `reference`."""
    run = make_run(top1=100 * right.mean(), fp32=100 * reference.mean(), **facts)
    for name, answers in {"quantized": right, "fp32": reference}.items():
        run["metrics"][name] |= {"images": len(answers), "correct": packed_answers(answers)}
    return run


def unlabelled(run: dict) -> dict:
    for metrics in run["metrics"].values():
        metrics |= {"top1": None, "top5": None}
    return run


def glyphs(*runs: dict) -> Records:
    return Records("glyphs", list(runs))


def imagenet(*runs: dict) -> Records:
    return Records("imagenet", list(runs), imagenet_paper(ROOT / "results" / "paper"))


def write_runs(results: Path, *runs: dict) -> list[Path]:
    paths = [record.run_path(results, run["data"]["name"], *(run[key] for key in PLACE)) for run in runs]
    for path, run in zip(paths, runs, strict=True):
        record.write(path, run)
    return paths


def report(results: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`python -m bitsplit.report ARGUMENTS --results RESULTS`, finished."""
    line = [sys.executable, "-m", "bitsplit.report", *arguments, "--results", str(results)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT)


def table_files(folder: Path) -> dict[str, bytes]:
    """The tables in a folder; an image sheet may lie beside them."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".md", ".csv", ".tex")}


def row(table: Table, *labels: str) -> pandas.Series:
    """The row with these labels in the first columns of what people see."""
    return table.shown.set_index(list(table.shown.columns[: len(labels)])).loc[labels]


def cell(table: Table, model: str, method: str, wbits=4, abits=4) -> pandas.Series:
    return table.cells.set_index(["model", "method", "wbits", "abits"]).loc[(model, method, wbits, abits)]
