"""`python run.py save=FILE` and `evaluate=FILE`: the network of a run as a file, and what it is worth."""

import json

import pytest
from conftest import SMALL
from test_run import GLYPHS, assert_refused, records

from bitsplit.networks.narrow import narrow_classifier


def lines_of_networks(text: str) -> list[list[str]]:
    """The rows of the printed table that both commands have."""
    starts = ("floating point ", "quantized W4A4 ")
    return [line.split() for line in text.splitlines() if line.lstrip().startswith(starts)]


@pytest.mark.slow
def test_the_network_of_a_run_is_saved_and_evaluates_to_the_same_numbers(command, tmp_path):
    arguments, file = [*GLYPHS, "method=tflite", "wbits=4", "abits=4"], tmp_path / "made" / "resnet18.safetensors"
    without = command(*arguments)
    assert without.returncode == 0, without.stderr
    (path,) = records(tmp_path)
    before = json.loads(path.read_text())
    done = command(*arguments, f"save={file}")  # although there is a record
    assert done.returncode == 0 and "made/resnet18.safetensors (" in done.stdout, done.stderr
    after = json.loads(path.read_text())
    assert all(after[key] == before[key] for key in ("config_hash", "metrics", "layers"))
    assert file.stat().st_size < 0.2 * sum(p.nbytes for p in narrow_classifier("resnet18", 100).parameters())

    content = path.read_bytes()
    evaluated = command(*GLYPHS, f"evaluate={file}")
    assert evaluated.returncode == 0, evaluated.stderr
    tables = [lines_of_networks(process.stdout) for process in (done, evaluated)]
    assert tables[0] == tables[1] and len(tables[0]) == 2
    assert "resnet18 · tflite · W4A4" in evaluated.stdout
    assert path.read_bytes() == content and records(tmp_path) == [path]

    assert_refused(command(*GLYPHS, "model=resnet50", f"evaluate={file}"), "another architecture")
    file.write_bytes(file.read_bytes()[:-1])
    assert_refused(command(*GLYPHS, f"evaluate={file}"), "is damaged")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["save=tests"], "save=tests is a folder"),
        (["save=/proc/nowhere/network"], "give another place with save=FILE"),
        (["save=README.md/network"], "give another place with save=FILE"),
        (["html=tests"], "html=tests is a folder"),
        (["save=./mine", "model.weights=mine"], "save=mine would overwrite model.weights"),
        (["save=3"], "save must be the name of a file"),
        (["evaluate=nowhere.safetensors"], "nowhere.safetensors cannot be read"),
        (["evaluate=README.md"], "README.md is no file of a quantized network"),
        (["evaluate=tests"], "tests cannot be read"),
        (["evaluate=a", "save=b"], "leave one of them out"),
        (["-m", "wbits=3,4", "save=network"], "save=FILE is one file and a sweep has many cells"),
        (["-m", "evaluate=a,b"], "evaluate=FILE is one file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_files_that_cannot_be_are_one_line_before_any_work(command, tmp_path, arguments, says):
    done = command(*arguments, "data=glyphs", *SMALL)
    assert_refused(done, says)
    assert not records(tmp_path)


def test_two_files_of_one_name_are_refused(command, tmp_path):
    done = command("data=glyphs", f"save={tmp_path / 'network'}", f"html={tmp_path / 'x' / '..' / 'network'}")
    assert done.returncode == 2 and "give each a file of its own" in done.stderr
