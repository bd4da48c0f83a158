"""The ablation as a command: one row of a small run, its table, and that no cell is run twice; what its rows are."""

import sys

import pandas
import pytest
import torch
from conftest import ROOT, experiment
from small_networks import BATCHES, Residual, lively
from small_networks import SMALL as SETTINGS

import bitsplit
from bitsplit.layers.inputs import InputQuantizer

sys.path.insert(0, str(ROOT / "experiments"))
from ablation import ROWS, row_method  # noqa: E402

SMALL = ("data.validation_images=60", "calibration.batch_size=8", "calibration.gram_batches=2")
SMALLER = ("calibration.scale_batches=2", "calibration.lockstep_batches=2", "calibration.lockstep_patches=300")
UNFOLDED = (
    "bit-split",
    "bit-split, lattice",
    "+ order, λ and damping",
    "+ shortcuts",
    "plus without scales by channel",
)


@pytest.mark.slow
def test_a_small_ablation_writes_its_table_and_keeps_its_cells(tmp_path):
    rows = ("bit-split",)
    arguments = ("--networks", "resnet18", "--rows", *rows, "--seeds", "0", "1", "--results", str(tmp_path))
    keys = ("--set", *SMALL, *SMALLER, "calibration.patches=300", "batch_norm.batches=2")
    done = experiment("ablation", *arguments, *keys)
    assert done.returncode == 0, done.stderr
    table = pandas.read_csv(tmp_path / "glyphs" / "table_ablation.csv")
    assert len(table) == 4 * 2 and set(table["row"]) == set(rows) and set(table["seed"]) == {0, 1}
    worse = table[(table["wbits"] == 2)].groupby("row")["logits_snr_db"].mean()
    assert worse["bit-split"] < table[table["wbits"] == 4].groupby("row")["logits_snr_db"].mean()["bit-split"]
    assert "± is half the 95% interval" in done.stdout
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "glyphs" / "ablation").iterdir()}
    assert len(cells) == 8
    again = experiment("ablation", *arguments, *keys)
    assert again.stdout == done.stdout
    fewer = experiment("ablation", *arguments[:4], "--seeds", "1", *arguments[-2:], *keys)
    assert fewer.stdout == done.stdout  # the table has the other cells too
    assert {path: path.stat().st_mtime_ns for path in cells} == cells


def test_help_names_the_rows_file():
    done = experiment("ablation", "--help")
    assert done.returncode == 0 and "table_ablation" in done.stdout


@pytest.mark.parametrize("row", ROWS)
def test_the_inputs_of_every_row_have_one_scale_a_tensor(row):
    torch.manual_seed(0)
    qmodel = bitsplit.quantize(lively(Residual()), BATCHES, 4, 4, row_method(row), settings=SETTINGS)
    quantizers = [module for module in qmodel.modules() if isinstance(module, InputQuantizer)]
    assert quantizers and all(quantizer.step.dim() == 0 for quantizer in quantizers)
    assert any(quantizer.folded for quantizer in quantizers) != (row in UNFOLDED)
