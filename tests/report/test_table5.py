"""Table 5 and its figure, from records of detectors."""

import re

import numpy as np
import pandas
import pytest
from conftest import ROOT
from records import make_run, report, write_runs

from bitsplit.report import figures
from bitsplit.report.detector_figure import detector_figure, precision_curves
from bitsplit.report.records import Records, read_records
from bitsplit.report.runs_table import runs_table
from bitsplit.report.summary import run_line
from bitsplit.report.table5 import TABLE5_BITS, table5

KINDS = {"retinanet": ["bbox"], "mask_rcnn": ["bbox", "segm"]}


def detected(model: str, ap: float) -> dict:
    kinds = KINDS[model]
    precisions = {f"{kind}_{name}": ap + i for kind in kinds for i, name in enumerate(("ap", "ap75", "ap50"))}
    return precisions | {"images": 500, "skipped": 0}


def detector_run(model="retinanet", method="bitsplit", abits=4, ap=50.0, fp32=51.0, **changes) -> dict:
    run = make_run(model, method, 4, abits, data="glyphs_coco")
    floating_point = detected(model, fp32)
    metrics = {"fp32": floating_point, "fp32_bn": floating_point, "quantized": detected(model, ap)}
    return run | {"metrics": metrics} | changes


def every() -> list[dict]:
    return [
        detector_run(model, method, abits, 40.0 + abits + (method == "bitsplit"))
        for model in KINDS
        for method in ("tflite", "bitsplit")
        for _, abits in TABLE5_BITS
    ]


def test_the_table_has_the_papers_rows_and_columns():
    shown = table5(Records("glyphs_coco", every())).shown.set_index(["setting", "method"])
    assert list(shown.columns) == ["RetinaNet, box", "Mask R-CNN, box", "Mask R-CNN, mask"]
    assert list(shown.index[:3]) == [("", "floating point"), ("A8W4", "TF-Lite"), ("A8W4", "Bit-split")]
    assert shown.loc[("", "floating point"), "RetinaNet, box"] == "51.0 / 53.0 / 52.0"
    assert shown.loc[("A4W4", "Bit-split"), "Mask R-CNN, mask"] == "45.0 / 47.0 / 46.0 (−6.00)"


def test_cells_without_a_record_say_so_and_variants_are_left_out():
    runs = [detector_run(abits=8), detector_run(abits=4, variant="scope=backbone_neck")]
    shown = table5(Records("glyphs_coco", runs)).shown.set_index(["setting", "method"])
    assert shown.loc[("A8W4", "Bit-split"), "RetinaNet, box"].startswith("50.0 / ")
    assert shown.loc[("A4W4", "Bit-split"), "RetinaNet, box"] == "not run"
    assert (shown["Mask R-CNN, mask"] == "not run").all()
    assert table5(Records("glyphs_coco", runs[1:])) is None
    assert table5(Records("glyphs", [make_run()])) is None


def test_the_papers_numbers_stand_beside_ours_on_coco():
    paper = read_records(ROOT / "results", "coco").paper
    shown = table5(Records("coco", every(), paper)).shown.set_index(["setting", "method"])
    assert shown.loc[("A4W4", "Bit-split"), "Mask R-CNN, mask"].endswith("; paper 29.6 / 49.7 / 31.2)")
    assert "paper" not in shown.loc[("A4W4", "TF-Lite"), "RetinaNet, box"]


def test_other_tables_and_lines_of_a_detector():
    table = runs_table(Records("glyphs_coco", every()))
    assert {"bbox_ap", "segm_ap75", "bbox_ap_drop"} <= set(table.cells.columns) and "top1" not in table.cells
    line = run_line(detector_run("mask_rcnn", ap=50.25))
    assert "box AP 50.25 (-0.75), mask AP 50.25 (-0.75)" in line


def test_changes_have_intervals_where_the_records_have_blocks_of_images():
    """Those of the differences, which are narrower where both networks find the same hard."""
    without = np.random.default_rng(0).normal(50, 0.2, 50)
    run = detector_run(ap=50.0, fp32=51.0)
    for name, shift in {"quantized": 0, "fp32": 1}.items():
        noise = np.random.default_rng(shift).normal(0, 0.01, 50)
        run["metrics"][name] = run["metrics"][name] | {"bbox_ap_without": list(without + shift + noise)}
    table = table5(Records("glyphs_coco", [run]))
    cell = table.cells.set_index(["model", "method", "abits", "kind"]).loc[("retinanet", "bitsplit", 4, "bbox")]
    assert 0 < cell["drop_interval"] < cell["ap_interval"] / 5
    shown = table.shown.set_index(["setting", "method"])["RetinaNet, box"]
    assert shown["A4W4", "Bit-split"] == f"50.0 / 52.0 / 51.0 (−1.00 ± {cell['drop_interval']:.2f})"
    bars = detector_figure([run]).axes[0].containers[0].lines[2][0].get_segments()
    assert bars[0][1][1] - bars[0][0][1] == pytest.approx(2 * cell["ap_interval"])


def test_two_records_of_detectors_are_compared(tmp_path):
    draw, runs = np.random.default_rng(0), []
    for method, ap in {"bitsplit": 50.0, "tflite": 47.0}.items():
        run = detector_run("mask_rcnn", method, ap=ap, fp32=51.0)
        for metrics in run["metrics"].values():
            metrics |= {f"{kind}_ap_without": list(draw.normal(50, 0.02, 50)) for kind in ("bbox", "segm")}
        runs.append(run)
    write_runs(tmp_path, *runs)
    done = report(tmp_path, "compare", *sorted(map(str, tmp_path.rglob("*.json"))))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1] == "  Mask R-CNN Bit-split W4A4: box AP 50.00, mask AP 50.00"
    assert re.fullmatch(
        r"Mask R-CNN Bit-split W4A4 minus Mask R-CNN TF-Lite W4A4, box AP: \+3\.00 ± 0\.\d\d points, above \(p = .+\)",
        lines[4],
    )
    assert len(lines) == 4 + 6


def test_detectors_on_few_scenes_cannot_be_compared(tmp_path):
    runs = [detector_run(method=method) for method in ("bitsplit", "tflite")]
    for run in runs:
        run["metrics"]["quantized"] = run["metrics"]["quantized"] | {"bbox_ap_without": []}
    write_runs(tmp_path, *runs)
    done = report(tmp_path, "compare", *sorted(map(str, tmp_path.rglob("*.json"))))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


def test_the_figure_draws_the_tables_numbers():
    runs = every()
    figure = detector_figure(runs)
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["RetinaNet, box", "Mask R-CNN, box", "Mask R-CNN, mask"]
    table = precision_curves(runs)
    line = next(line for line in figure.axes[2].get_lines() if line.get_marker() == "o")
    cells = table[(table["model"] == "mask_rcnn") & (table["kind"] == "segm") & (table["method"] == "bitsplit")]
    assert dict(zip(*line.get_data(), strict=True)) == dict(zip(cells["abits"], cells["ap"], strict=True))
    assert list(figures.bit_width_figures(runs)) == ["table5"]
    assert isinstance(table, pandas.DataFrame) and precision_curves([make_run()]).empty
