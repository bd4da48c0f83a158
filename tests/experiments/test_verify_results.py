"""`experiments/verify_results.py`: records that come out equal, one that was changed, and none."""

import json

import pytest
from conftest import SMALL, experiment

from bitsplit.report import record

CELL = ["data=glyphs", "data.validation_images=50", *SMALL, "wbits=3", "abits=4", "device=cpu"]


@pytest.mark.slow
def test_a_record_comes_out_equal_and_a_changed_one_does_not(command, tmp_path):
    settings = ["method=bitsplit", "method.rounds=2", "layer_bits={layer4.*:[8,8]}", "convention=all_low", "seed=1"]
    assert command(*CELL, *settings).returncode == 0
    arguments = ("--cells", "3", "--results", str(tmp_path / "results"))
    done = experiment("verify_results", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 records, drawn with --seed" in done.stdout and done.stdout.endswith("1 of 1 equal\n")

    (path,) = (tmp_path / "results").rglob("*.json")
    run = json.loads(path.read_text(encoding="utf-8"))
    run["metrics"]["quantized"]["top1"] += 2
    record.write(path, run)
    done = experiment("verify_results", *arguments, "--seed", "5")
    assert done.returncode == 1 and "seed 1" in done.stdout and "quantized top1 -2" in done.stdout
    assert done.stdout.endswith("0 of 1 equal\n")


def test_without_records_it_is_one_line(tmp_path):
    done = experiment("verify_results", "--results", str(tmp_path))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "no record" in done.stderr
