"""`experiments/verify_results.py`: records that come out equal, one that was changed, and none."""

import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, experiment

from bitsplit.report import record

sys.path.insert(0, str(ROOT / "experiments"))
from verify_results import can_run  # noqa: E402

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


@pytest.fixture
def committed():
    path = ROOT / "results" / "glyphs" / "runs" / "resnet18-tflite-w4a4-s0.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_what_nobody_else_has_is_not_drawn(committed):
    root = Path("/images")
    published = {"file": "efficientnet-lite0-57934424.pth", "sha256": "579344248a93e23026e6b78f1f6faf0b" + 32 * "0"}
    own = {"file": "mine-a.pth", "sha256": 64 * "a"}

    def drawn(root, **parts):
        return can_run(committed | {key: committed[key] | part for key, part in parts.items()}, root)

    assert drawn(None) and drawn(root, data={"name": "imagenet_500"}, weights=published)
    assert not drawn(None, data={"name": "imagenet_500"}, weights=published)
    assert not drawn(root, weights=own) and not drawn(root, weights=published | {"sha256": 64 * "0"})
    assert not any(drawn(root, data={"name": name}) for name in ("folder_mine", "coco_50", "imagenette", "glyphs_mine"))


def test_a_record_that_cannot_be_computed_stops_no_other(committed, tmp_path):
    for patches in (0, -1):
        committed["config"]["calibration"]["patches"] = patches
        record.write(tmp_path / "results" / "glyphs" / "runs" / f"{patches}.json", committed)
    done = experiment("verify_results", "--results", str(tmp_path / "results"))
    assert done.returncode == 1 and done.stderr == "" and done.stdout.endswith("0 of 2 equal\n")
    assert done.stdout.count("cannot be computed: calibration.patches must be") == 2
