"""The promise of docs/add_a_method.md: a method is one file and one YAML."""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, SMALL

from bitsplit.report import record


@pytest.fixture
def copy(tmp_path):
    """A copy of the code with the document's two files in their places."""
    for name in ("bitsplit", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "run.py", tmp_path)
    section = (ROOT / "docs" / "add_a_method.md").read_text().split("## Add a method")[1].split("\n## ")[0]
    files = re.findall(r"```\w+\n# (\S+)\n(.*?)```", section, flags=re.DOTALL)
    assert len(files) == 2
    for name, text in files:
        (tmp_path / name).write_text(text)
    assert sum(len(text.splitlines()) for _, text in files) < 30
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
