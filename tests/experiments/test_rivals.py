"""`experiments/rivals.py`: its table from records alone, its command line, and rivals' integers in our network."""

import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import ROOT, environment, experiment
from small_networks import BATCHES

sys.path.insert(0, str(ROOT / "experiments"))
from rival_problem import Problem, codes_on_grid  # noqa: E402
from rivals import Cell, records  # noqa: E402
from rivals_table import rivals_table  # noqa: E402

from bitsplit.answers import packed_answers  # noqa: E402
from bitsplit.layers.quantized import QuantizedLayer  # noqa: E402


def cell(rival: str, batch_norm: str, right: np.ndarray | None, seconds: float = 0.0) -> dict:
    """What a file of `results/<data>/rivals` holds, as far as the table reads it."""
    head = vars(Cell("resnet18", rival, batch_norm, 3, 32)) | {"data": "ten images", "package": "a package"}
    if right is None:
        return head | {"reason": "it needs a GPU"}
    metrics = {"top1": 100 * right.mean(), "agreement": 90.0, "logits_snr_db": 20.0, "images": len(right)}
    return head | {
        "metrics": metrics | {"correct": packed_answers(right)},
        "thread_seconds": seconds,
    }


def test_the_table_from_cells_on_disk(tmp_path):
    right = np.array([1] * 700 + [0] * 301, bool)
    worse, near = right.copy(), right.copy()
    worse[:100], near[:6] = False, False
    cells = [
        cell("brevitas_gptq", "none", worse, 40.0),
        cell("bitsplit_plus", "none", right, 8.0),
        cell("bitsplit", "after", near, 4.0),
        cell("aimet_adaround", "before", None),
    ]
    (tmp_path / "rivals").mkdir()
    for place, values in enumerate(cells):
        (tmp_path / "rivals" / f"{place}.json").write_text(json.dumps(values), encoding="utf-8")
    table = rivals_table(records(tmp_path))
    shown = table.shown.set_index("method")
    assert list(shown.index) == ["Bit-split", "Bit-split-plus", "GPTQ (brevitas)", "AdaRound (aimet-torch)"]
    assert list(shown["bits"].unique()) == ["W3A32"] and "ten images" in table.caption
    assert list(shown["verdict"]) == ["above", "–", "above", "it needs a GPU"]
    assert list(shown["top-1 %"]) == ["69.33", "69.93", "59.94", "–"]
    assert shown.loc["GPTQ (brevitas)", "plus minus this"] == "+9.99 ± 1.86"  # 1.96 √(100 − 100²/1001) / 1001
    assert table.cells["seconds_of_ours"].tolist()[:3] == [0.5, 1.0, 5.0]


def test_integers_off_the_grid_are_refused():
    scale = torch.tensor([0.5, 0.25]).reshape(2, 1, 1, 1)
    weight = torch.tensor([[-7, 3, 0], [1, 7, -2]]).reshape(2, 3, 1, 1) * scale
    codes = codes_on_grid(weight, scale, 4, "layer")
    assert codes.codes.tolist() == [[[-7, 3, 0], [1, 7, -2]]] and codes.scale.tolist() == [[0.5, 0.25]]
    for wrong in (weight + 0.1, weight * 8 / 7, weight - scale):
        with pytest.raises(ValueError, match="layer: weights off the grid of 4 bits"):
            codes_on_grid(wrong, scale, 4, "layer")


@pytest.mark.skipif(find_spec("brevitas") is None, reason="needs the extra `rivals`: make setup-rivals")
@pytest.mark.parametrize("algorithm", ["gptq", "gpfq", "qronos"])
def test_brevitas_on_our_grid(network, algorithm):
    from rival_brevitas import solve

    images = BATCHES
    with torch.no_grad():
        floating_point = network(images[0])
        errors = {}
        for bits in (8, 4):
            problem = Problem.of(network, images, bits, bits, seed=0)
            quantized = problem.quantized(solve(algorithm, problem))
            errors[bits] = ((quantized(images[0]) - floating_point).square().mean() / floating_point.var()).item()
    layers = {name: layer for name, layer in quantized.named_modules() if isinstance(layer, QuantizedLayer)}
    assert {name: layer.wbits for name, layer in layers.items()} == problem.wbits
    assert all(layer.codes.int().abs().max() < 2 ** (layer.wbits - 1) for layer in layers.values())
    assert errors[8] < 1e-3 and errors[4] < 0.5


def test_the_command_lists_its_options_and_refuses_what_there_is_not():
    done = experiment("rivals", "--help")
    assert done.returncode == 0 and "--bits" in done.stdout and "brevitas_qronos" in done.stdout
    done = experiment("rivals", "--rivals", "nobody")
    assert done.returncode == 2 and "argument --rivals: 'nobody' is none of bitsplit_plus, " in done.stderr


def test_a_missing_extra_is_one_line(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['brevitas'] = None\n", encoding="utf-8")
    line = [sys.executable, "experiments/rivals.py", "--rivals", "brevitas_gptq", f"results={tmp_path}"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment(PYTHONPATH=str(tmp_path)))
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("error: brevitas is not installed: pip install 'bitsplit[rivals]'")
    )
