"""Files are UTF-8 in every locale, and a sweep's own folder is checked before its cells."""

import ast
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, environment
from test_surroundings import ASCII, CELL, assert_one_line, permissions, run

PROGRAMS = [ROOT / "run.py", *(ROOT / "bitsplit").rglob("*.py"), *(ROOT / "experiments").glob("*.py")]
OTHER_OPENERS = {"Image", "os", "zipfile"}  # of no text


def is_binary(call: ast.Call) -> bool:
    """Whether a mode such as "rb" is given; `open(path, mode)` has it second and `path.open(mode)` first."""
    modes = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    return any(isinstance(mode, ast.Constant) and isinstance(mode.value, str) and "b" in mode.value for mode in modes)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_has_its_encoding(path):
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        owner = getattr(getattr(call.func, "value", None), "id", "")
        texts = name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute)
        opens = name == "open" and owner not in OTHER_OPENERS and not is_binary(call)
        if texts or opens:
            assert any(keyword.arg == "encoding" for keyword in call.keywords), call.lineno


def test_tables_are_the_same_in_every_locale(tmp_path):
    written = []
    for name, variables in (("here", {"PYTHONUTF8": "1"}), ("ascii", ASCII)):
        shutil.copytree(ROOT / "results" / "glyphs" / "runs", tmp_path / name / "glyphs" / "runs")
        line = [sys.executable, "-m", "bitsplit.report", "table4", "glyphs", "--results", str(tmp_path / name)]
        done = subprocess.run(line, capture_output=True, cwd=ROOT, env=environment(**variables))
        assert done.returncode == 0, done.stderr
        folder = tmp_path / name / "glyphs"
        written.append({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    assert written[0] and written[0] == written[1]


@permissions
def test_a_sweep_folder_that_cannot_be_written(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o555)
    done = run("-m", *CELL, "wbits=3,4", f"results={tmp_path / 'results'}", cwd=folder)
    assert_one_line(done, str(folder), "hydra.sweep.dir=FOLDER")


@pytest.mark.parametrize("count", ["0", "abc", "2.5"])
def test_numbers_that_no_launcher_starts_with(tmp_path, count):
    line = ["-m", *CELL, "wbits=3,4", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={count}"]
    done = run(*line, f"results={tmp_path / 'results'}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert_one_line(done, "n_jobs")
    assert list(tmp_path.iterdir()) == []
