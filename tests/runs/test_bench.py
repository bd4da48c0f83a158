"""What runs of one network compute for each other, across processes."""

import subprocess
import sys

import pytest
from conftest import ROOT, SMALL, composed, environment

from bitsplit.data.glyphs import glyphs_folder
from bitsplit.runs.experiment import Run

PROGRAM = """
import runpy
import sys
from bitsplit import ptq
from bitsplit.tasks.classification import Classification
predict, solve, log = Classification._predict, ptq.quantize_weights, sys.argv.pop(1)
def count(what):
    with open(log, "a") as file:
        file.write(what + "\\n")
def counted(self, module, what):
    count(what)
    return predict(self, module, what)
def solved(*arguments):
    count("weights")
    return solve(*arguments)
Classification._predict, ptq.quantize_weights = counted, solved
sys.argv[0] = "run.py"
runpy.run_path("run.py", run_name="__main__")
"""


@pytest.mark.slow
def test_processes_evaluate_the_float_network_and_solve_weights_once_in_all(tmp_path):
    """Each cell alone would evaluate it twice, as it is and re-estimated, and solve its weights; nothing else of it
    changes."""
    keys = ["data=glyphs", "data.validation_images=100", *SMALL, "method=bitsplit", "logger=none"]

    def started(wbits, abits, cache):
        (tmp_path / cache).mkdir(exist_ok=True)
        if not (drawn := tmp_path / cache / glyphs_folder().name).exists():
            drawn.symlink_to(glyphs_folder())
        log, results = tmp_path / f"log-{cache}", f"results={tmp_path / f'results-{cache}'}"
        line = [sys.executable, "-c", PROGRAM, str(log), *keys, f"wbits={wbits}", f"abits={abits}", results]
        variables = environment(BITSPLIT_CACHE=str(tmp_path / cache))
        return subprocess.Popen(line, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True)

    def accuracies(process):
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0
        return [line for line in output.splitlines() if line.lstrip().startswith(("floating", "quantized"))]

    cells = [(4, 8), (5, 8), (4, 4)]
    shared = [accuracies(process) for process in [started(*cell, "shared") for cell in cells]]
    seen = sorted((tmp_path / "log-shared").read_text().splitlines())
    assert seen == ["floating point", "fp32_bn", *["quantized"] * 3, *["weights"] * 2]
    for cell, lines in zip(cells[::2], shared[::2], strict=True):
        assert accuracies(started(*cell, f"alone-{cell[1]}")) == lines
    assert shared[0][:2] == shared[1][:2] == shared[2][:2]


def test_what_is_kept_is_named_after_all_that_it_depends_on(tmp_path, monkeypatch):
    """Else one run would take another's Gram matrices or integers for its own."""
    (tmp_path / glyphs_folder().name).symlink_to(glyphs_folder())
    monkeypatch.setenv("BITSPLIT_CACHE", str(tmp_path))

    def new_files(*arguments):
        before = set(tmp_path.glob("*/*-*.safetensors"))
        run = Run.of(composed("data=glyphs", "data.validation_images=20", *SMALL, "method=bitsplit", *arguments))
        run.bench.known(run.method, run.settings)
        return sorted(path.parent.name for path in set(tmp_path.glob("*/*-*.safetensors")) - before)

    assert new_files("wbits=4") == ["statistics", "weights"]
    assert new_files("wbits=4", "abits=8") == []
    assert new_files("wbits=4", "seed=1") == ["statistics", "weights"]
    assert new_files("wbits=4", "calibration.patches=100") == ["statistics", "weights"]
    for arguments in (["wbits=5"], ["wbits=4", "layer_bits={fc:[6,6]}"], ["wbits=4", "method.rounds=1"]):
        assert new_files(*arguments) == ["weights"]
    monkeypatch.setattr("bitsplit.runs.bench.images_made_by", lambda: ["another version"])
    monkeypatch.setattr("bitsplit.runs.bench._benches", {})
    assert new_files("wbits=4") == ["statistics", "weights"]


@pytest.mark.parametrize(
    ("arguments", "batches"),
    [
        (["method=bitsplit_plus"], 100),
        (["method=bitsplit_plus", "calibration.lockstep_batches=150"], 150),
        (["method=bitsplit", "calibration.lockstep_batches=150"], 100),
    ],
)
def test_a_step_has_the_batches_that_it_asks_for(arguments, batches):
    assert len(Run.of(composed("data=glyphs", *arguments)).bench.calibration) == batches
