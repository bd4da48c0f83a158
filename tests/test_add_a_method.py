"""The promise of docs/add_a_method.md: a method, a network or a data set is one file and one YAML."""

import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SMALL

from bitsplit.report import record
from bitsplit.vision import torchvision


@pytest.fixture
def copy(tmp_path):
    """A copy of the code with the document's files in their places, two of each section."""
    for name in ("bitsplit", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "run.py", tmp_path)
    files = re.findall(r"```\w+\n# (\S+)\n(.*?)```", (ROOT / "docs" / "add_a_method.md").read_text(), flags=re.DOTALL)
    assert len(files) == 6
    for name, text in files:
        (tmp_path / name).write_text(text)
    assert sum(len(text.splitlines()) for _, text in files[:2]) < 30
    return tmp_path


def run(copy, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=copy, capture_output=True, text=True, timeout=300)


def test_the_documented_method_runs_and_has_its_line_in_the_tables(copy):
    overrides = ["data=glyphs", "data.validation_images=200", *SMALL, "logger=none", "wbits=4", "abits=4"]
    done = run(copy, "run.py", *overrides, "method=percentile", "method.percent=99")
    assert done.returncode == 0, done.stderr
    (path,) = (copy / "results" / "glyphs" / "runs").glob("*.json")
    written = record.read(path)
    assert written["method"] == "percentile" and written["config"]["method"]["percent"] == 99
    help_text = run(copy, "run.py", "--help").stdout
    assert "percentile" in help_text
    shutil.copytree(ROOT / "results" / "paper", copy / "results" / "paper")
    table = run(copy, "-m", "bitsplit.report", "runs", "glyphs")
    assert table.returncode == 0 and "percentile" in table.stdout, table.stderr


@pytest.mark.slow
def test_the_documented_network_runs_on_the_documented_data_set(copy, imagenet_root):
    torch.save(torchvision.models.mobilenet_v2().state_dict(), copy / "weights.pth")
    overrides = ["data=class_folders", f"data.root={imagenet_root}", "model=mobilenet_v2", "model.weights=weights.pth"]
    done = run(copy, "run.py", *overrides, *SMALL, "calibration.batch_size=8", "logger=none", "method=tflite")
    assert done.returncode == 0, done.stderr
    (path,) = (copy / "results" / "class_folders" / "runs").glob("*.json")
    assert record.read(path)["metrics"]["quantized"]["images"] == 12
