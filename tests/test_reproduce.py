"""`make reproduce`: what it refuses, the order of its steps, the cells it still has to run."""

import re
import subprocess

import pytest
from conftest import ROOT, SMALL, environment, experiment
from test_report import glyphs, imagenet, made_run

from bitsplit.report import tables
from bitsplit.report.against_paper import against_paper


def made(*arguments: str) -> subprocess.CompletedProcess:
    line = ["make", "reproduce", *arguments]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "DATA=imagenet or DATA=coco"),
        (["DATA=imagenette", "ROOT=tests"], "DATA=imagenet or DATA=coco"),
        (["DATA=imagenet"], "ROOT=folder"),
        (["DATA=coco"], "ROOT=folder"),
        (["DATA=imagenet", "ROOT=no/such/folder"], "no/such/folder is not a folder"),
    ],
)
def test_refusals_are_one_line_and_exit_code_2(arguments, says):
    done = made(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and says in done.stderr
    assert done.stdout == ""


def test_steps_are_in_order():
    """make's dry run: the estimate, the four tables, all tables and figures, the comparison."""
    done = made("-n", "DATA=imagenet", "ROOT=tests", "ARGS=seed=1")
    steps = re.findall(r"estimate_cost|experiment=\w+|bitsplit\.report(?: \w+ ?\w*)?$", done.stdout, re.MULTILINE)
    assert steps == [
        "estimate_cost",
        *(f"experiment={name}" for name in ("table4", "table4_equal", "weights", "both")),
        "bitsplit.report",
        "bitsplit.report figures",
        "bitsplit.report against_paper imagenet",
    ]
    cells = [line for line in done.stdout.splitlines() if "experiment=" in line]
    assert all("data=imagenet" in line and "data.root=tests" in line and "seed=1" in line for line in cells)


def test_steps_for_coco_are_in_order():
    done = made("-n", "DATA=coco", "ROOT=tests")
    steps = re.findall(r"estimate_detection|experiment=\w+|bitsplit\.report(?: \w+ ?\w*)?$", done.stdout, re.MULTILINE)
    assert steps == ["estimate_detection", "experiment=table5", "bitsplit.report", "bitsplit.report figures"]
    assert "data=coco" in done.stdout and "data.root=tests" in done.stdout


@pytest.mark.slow
def test_only_cells_without_a_record_are_counted(command, tmp_path, imagenet_root, resnet18_weights):
    cells = [f"data.root={imagenet_root}", f"model.weights={resnet18_weights}", *SMALL]
    cells += ["data=imagenet", "model=resnet18", "wbits=4", "abits=8"]
    done = command(*cells, "method=tflite")
    assert done.returncode == 0, done.stderr
    done = experiment(
        "estimate_cost", *cells, "method=tflite,aciq", f"results={tmp_path / 'results'}", "--pictures", "2"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ImageNet validation, 12 pictures; cells without a record: table4 1 of 2,")
    # On equal terms TF-Lite has another record.
    assert "table4-equal 2 of 2" in done.stdout and "table-weights 1 of 2" in done.stdout
    assert re.search(r"all +3\.0 +150000\.0", done.stdout)  # ACIQ's cell of table 4 is that of the other tables


def test_data_that_no_cell_could_run_on_are_one_line(tmp_path):
    done = experiment("estimate_cost", "data=imagenet", f"data.root={tmp_path}", "model.weights=none.pth")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "train/<wnid>" in done.stderr and done.stderr.count("\n") == 1


def test_comparison_with_the_paper_is_ours_minus_theirs():
    """The paper's W4A4: ResNet-18 67.56, ResNet-50 73.71 with bit-split, 18.84 for ResNet-18 with TF-Lite."""
    found = [made_run(top1=67.26, data="imagenet"), made_run("resnet50", top1=74.71, data="imagenet")]
    table = against_paper(imagenet(*found, made_run(method="tflite", top1=18.84, data="imagenet")))
    cells = table.cells.set_index(["table", "wbits", "abits", "method"])
    ours = cells.loc[("table_both", 4, 4, "bitsplit")]
    assert (ours["paper"], ours["run"], ours["inside"]) == (4, 2, 1)
    assert (ours["least"], ours["greatest"]) == (pytest.approx(-0.30), pytest.approx(1.0))
    assert ours["mean"] == pytest.approx(0.35)
    assert cells.loc[("table_both", 4, 4, "tflite")]["mean"] == 0
    assert cells.loc[("table_both", 3, 3, "bitsplit")]["run"] == 0
    shown = table.shown.set_index(["table", "bits", "method"])
    assert shown.loc[("table_both", "W4A4", "Bit-split")].tolist() == ["2 of 4", "+0.35", "−0.30", "+1.00", "1"]
    assert shown.loc[("table_both", "W3A3", "Bit-split")].tolist() == ["0 of 4", "–", "–", "–", "–"]


def test_other_data_than_the_papers_are_not_compared():
    assert against_paper(glyphs(made_run())) is None and against_paper(imagenet()) is None
    assert "against_paper" in tables.TABLES
