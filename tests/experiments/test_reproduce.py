"""`make reproduce`: what it refuses, the order of its steps, the cells it still has to run."""

import re
import subprocess

import pytest
from conftest import ROOT, SMALL, environment, experiment


def make(*arguments: str) -> subprocess.CompletedProcess:
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
    done = make(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and says in done.stderr
    assert done.stdout == ""


def test_steps_are_in_order():
    """make's dry run: the estimate, the four tables, all tables and figures, the comparison."""
    done = make("-n", "DATA=imagenet", "ROOT=tests", "ARGS=seed=1")
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
    done = make("-n", "DATA=coco", "ROOT=tests")
    steps = re.findall(r"estimate_cost|experiment=\w+|bitsplit\.report(?: \w+ ?\w*)?$", done.stdout, re.MULTILINE)
    assert steps == ["estimate_cost", "experiment=table5", "bitsplit.report", "bitsplit.report figures"]
    assert "data=coco" in done.stdout and "data.root=tests" in done.stdout


@pytest.mark.slow
def test_only_cells_without_a_record_are_counted(command, tmp_path, imagenet_root, mobilenet):
    cells = ["data=imagenet", f"data.root={imagenet_root}", *mobilenet, *SMALL, "wbits=4", "abits=8"]
    done = command(*cells, "method=tflite")
    assert done.returncode == 0, done.stderr
    cells += ["method=tflite,aciq", f"results={tmp_path / 'results'}"]
    done = experiment("estimate_cost", *cells, "--images", "50000", "--sample", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ImageNet validation, 12 images; cells without a record: table4 1 of 2,")
    # On equal terms TF-Lite has another record.
    assert "table4-equal 2 of 2" in done.stdout and "table-weights 1 of 2" in done.stdout
    assert "In all 3 cells, 150,000 images, " in done.stdout  # ACIQ's cell of table 4 is that of the other tables


def test_data_that_no_cell_could_run_on_are_one_line(tmp_path):
    done = experiment("estimate_cost", "data=imagenet", f"data.root={tmp_path}", "model.weights=none.pth")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "train/<wnid>" in done.stderr and done.stderr.count("\n") == 1
