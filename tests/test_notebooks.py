"""What is committed in notebooks/: executed whole and in order, without errors, and without traces of a machine.

That they run is tested by nbmake (`pytest notebooks`).
"""

import json
import re

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
PLACES = re.compile(r"/(home|root|tmp|work|Users|usr|opt)/|[A-Z]:\\\\|\.venv|site-packages|https?://(?!github\.com/)")


def code_cells(path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    expected = {"accuracy_vs_bitwidth", "how_bitsplit_works", "your_own_network", "detection"}
    assert expected <= {path.stem for path in NOTEBOOKS}


@every_notebook
def test_outputs_are_those_of_one_run_from_the_top(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@every_notebook
def test_nothing_tells_where_and_when_it_ran(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"] == {"language_info": {"name": "python"}}
    assert all(cell["metadata"] == {} for cell in notebook["cells"])
    texts = [json.dumps(cell["source"]) for cell in notebook["cells"]]
    for cell in code_cells(path):
        for output in cell["outputs"]:
            data = {kind: value for kind, value in output.get("data", {}).items() if kind != "image/png"}
            texts.append(json.dumps([data, output.get("text")]))
    assert not [found.group() for text in texts for found in PLACES.finditer(text)]
