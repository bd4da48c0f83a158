"""What runs of one network compute for each other, across processes."""

import subprocess
import sys

from conftest import ROOT, SMALL, environment

from bitsplit.data.glyphs import glyphs_folder

PROGRAM = """
import runpy
import sys
from bitsplit.tasks.classification import Classification
predict, log = Classification._predict, sys.argv.pop(1)
def counted(self, module, what):
    with open(log, "a") as file:
        file.write(what + "\\n")
    return predict(self, module, what)
Classification._predict = counted
sys.argv[0] = "run.py"
runpy.run_path("run.py", run_name="__main__")
"""


def test_two_processes_evaluate_the_float_network_once_in_all(tmp_path):
    """Each cell alone would evaluate it twice, as it is and re-estimated; nothing else of it changes."""
    keys = ["data=glyphs", "data.validation_images=100", *SMALL, "method=bitsplit", "logger=none", "abits=8"]

    def started(wbits, cache):
        (tmp_path / cache).mkdir(exist_ok=True)
        if not (drawn := tmp_path / cache / glyphs_folder().name).exists():
            drawn.symlink_to(glyphs_folder())
        log, results = tmp_path / f"log-{cache}", f"results={tmp_path / f'results-{cache}'}"
        line = [sys.executable, "-c", PROGRAM, str(log), *keys, f"wbits={wbits}", results]
        variables = environment(BITSPLIT_CACHE=str(tmp_path / cache))
        return subprocess.Popen(line, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True)

    def accuracies(process):
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0
        return [line for line in output.splitlines() if line.lstrip().startswith(("floating", "quantized"))]

    shared = [accuracies(process) for process in [started(wbits, "shared") for wbits in (4, 5)]]
    seen = sorted((tmp_path / "log-shared").read_text().splitlines())
    assert seen == ["floating point", "fp32_bn", "quantized", "quantized"]
    alone = accuracies(started(4, "alone"))
    assert alone == shared[0] and alone[:2] == shared[1][:2]
