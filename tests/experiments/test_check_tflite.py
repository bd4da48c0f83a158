"""`experiments/check_tflite.py`: LiteRT's own tools find the codes and scales of our `tflite`."""

import re

import pytest
from conftest import experiment


@pytest.mark.slow
def test_weights_are_those_of_litert():
    pytest.importorskip("litert_torch", reason="needs the extra `tflite`")
    done = experiment("check_tflite", "--images", "100", "--calibration", "100")
    assert done.returncode == 0, done.stderr
    assert "Equal weight codes: 100.0000%, the others off by at most 0" in done.stdout
    found = re.search(r"scales equal to (\S+)\.\n.* LiteRT's agree in (\S+)%", done.stdout)
    assert float(found[1]) < 1e-6 and float(found[2]) >= 95
