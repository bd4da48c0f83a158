"""`experiments/check_tensorrt.py`: our threshold and modelopt's differ in the edges of the groups alone."""

import pytest
from conftest import experiment


@pytest.mark.slow
def test_nothing_but_the_groups_sets_the_thresholds_apart():
    pytest.importorskip("modelopt", reason="needs the extra `modelopt`")
    done = experiment("check_tensorrt", "--values", "20000")
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line][2:]
    assert len(rows) == 7
    for _, _, *bins in rows:
        ours, first_bin, groups, both, modelopt = map(int, bins)
        assert first_bin == ours and groups == both == modelopt
