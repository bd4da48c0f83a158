"""`experiments/estimate_cost.py`: the cells it counts, what they cost, and the time it derives from two timings."""

import sys
import time

import pytest
import torch
from conftest import ROOT

from bitsplit import methods
from bitsplit.data.processes import available_cores
from bitsplit.settings import BatchNorm, Bits, Settings

sys.path.insert(0, str(ROOT / "experiments"))
from cell_costs import Cell, Speed, cells_of, seconds_of_cells  # noqa: E402
from estimate_cost import EXPERIMENTS, Measured, hour_rows, speed_row, task_named_by, workers_of  # noqa: E402
from measure import fixed_and_slope  # noqa: E402


def test_cells_are_those_of_the_tables():
    tables = {title: cells_of(name) for title, name in EXPERIMENTS["classification"].items()}
    assert {title: len(cells) for title, cells in tables.items()} == {
        "table4": 4 * 7 * 2,
        "table-weights": 4 * 2 * 6 * 2,
        "table-both": 4 * 2 * 6,
        "table4-equal": 4 * 7 * 2,
    }
    # W4A8 and W4A4 of two methods are in table 4 already, W8A8 in the weights' table; on equal terms five are new.
    assert len({cell for cells in tables.values() for cell in cells}) == 56 + (96 - 8) + (48 - 8 - 8) + 4 * 5 * 2


def test_cells_of_detectors_are_those_of_table_5():
    assert {title: len(cells_of(name)) for title, name in EXPERIMENTS["detection"].items()} == {"table5": 2 * 2 * 3}


@pytest.mark.parametrize(
    ("arguments", "task"),
    [
        (["data=imagenet", "data.root=x", "model=resnet18,resnet50", "wbits=4"], "classification"),
        (["data=coco", "data.root=x", "model=retinanet", "model.scope=backbone_neck"], "detection"),
        (["data=glyphs_coco"], "detection"),
        (["model=mask_rcnn"], "detection"),
        (["seed=1"], "classification"),
    ],
)
def test_the_data_name_the_task(arguments, task):
    assert task_named_by(arguments) == task


def test_a_cell_costs_what_its_parts_cost():
    speed = Speed(evaluation=1.0, batch_norm=100.0, calibration=0.0, solve={"planes": 7e6})
    floating_point = 50

    def seconds(*cells: tuple) -> float:
        cells = [
            Cell("resnet18", methods.named(method), Settings(Bits(wbits, abits, 8, 8, 8), batch_norm=BatchNorm(mode)))
            for method, wbits, abits, mode in cells
        ]
        return seconds_of_cells(cells, speed, images=50) - floating_point

    assert seconds(("tflite", 4, 32, "none")) == 50
    # Two evaluations (one of the floating-point network re-estimated), two passes, the scales and the solve.
    assert seconds(("bitsplit", 8, 4, "reestimate")) == 2 * 50 + 2 * 6400 * 100 + 640 + 2 * 7e6
    assert seconds(("lapq", 4, 32, "none")) == 50 + 600 * 128
    # A second cell with the same weights is solved already and has one pass of its own.
    both = seconds(("bitsplit", 8, 4, "reestimate"), ("bitsplit", 8, 3, "reestimate"))
    assert both - seconds(("bitsplit", 8, 4, "reestimate")) == 50 + 6400 * 100 + 640


def test_a_network_of_the_users_own_goes_by_its_name():
    measured = Measured(Speed(1.0, 2.0, 3.0, {"planes": 4.0}), 0.1, validation_images=50, batch_size=64)
    cell = Cell("mine", methods.named("tflite"), Settings(Bits(4, 32), batch_norm=BatchNorm("none")))
    assert speed_row("mine", measured)["network"] == "mine"
    assert [(row["network"], row["cells"]) for row in hour_rows("mine", {"table4": [cell]}, measured)] == [("mine", 1)]


def test_cells_side_by_side_are_measured_side_by_side():
    assert workers_of(["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"]) == 3
    assert workers_of(["hydra/launcher=joblib"]) == available_cores()
    assert workers_of(["hydra/launcher=basic"]) == workers_of(["hydra/launcher=submitit_slurm"]) == 1
    speeds = [Speed(1.0, 2.0, 3.0, {"planes": 4.0}), Speed(3.0, 4.0, 5.0, {"planes": 6.0})]
    assert Speed.mean(speeds) == Speed(2.0, 3.0, 4.0, {"planes": 5.0})


def test_fixed_and_slope():
    fixed, slope = fixed_and_slope(lambda n: time.sleep(0.05 + 0.01 * n), 5, 25, device=torch.device("cpu"))
    assert fixed == pytest.approx(0.05, abs=0.03) and slope == pytest.approx(0.01, rel=0.2)
