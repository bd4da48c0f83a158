"""`experiments/deploy.py` on one cell, from the command line to its table."""

import pandas
import pytest
from conftest import experiment

pytest.importorskip("onnx", reason="needs the extra `onnx`")
pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")

QUICK = ["calibration.batch_size=32", "calibration.gram_batches=2", "calibration.scale_batches=2"]
QUICK += ["calibration.patches=400", "batch_norm.batches=2"]


@pytest.mark.slow
def test_one_cell_is_measured_in_every_form(tmp_path):
    arguments = ["--networks", "resnet18", "--bits", "W4A8", "--images", "200", "--results", str(tmp_path)]
    done = experiment("deploy", *arguments, "--set", *QUICK)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "glyphs"
    cells = pandas.read_csv(folder / "deploy.csv")
    assert cells[["model", "wbits", "abits", "images"]].to_numpy().tolist() == [["resnet18", 4, 8, 200]]
    (cell,) = cells.to_dict("records")
    assert cell["loaded_bit_for_bit"] and cell["loaded_top1"] == cell["simulated_top1"]
    for form in ("onnx", "onnx_integer"):
        assert cell[f"{form}_agreement"] >= 99 and abs(cell[f"{form}_top1"] - cell["simulated_top1"]) <= 1
        assert cell[f"{form}_bytes"] < 0.18 * cell["float32_bytes"]  # a narrow network has many scales for its weights
    assert cell["packed_bytes"] < cell["onnx_bytes"] and cell["float_ms"] > 0
    text = (folder / "deploy.md").read_text(encoding="utf-8")
    assert text.strip() in done.stdout and "Four bits buy size, not CPU time" in text
