"""Hours that Table 5 takes on the user's COCO, from the time of a few of its pictures on this machine.

Command:  python experiments/estimate_detection.py data=coco data.root=FOLDER   (after `make setup-detection`)
Data:     COCO, or glyphs_coco with data=glyphs_coco; only the cells that have no record are counted
Expected: 5 minutes on 2 cores
"""

import argparse
import itertools
import sys
import time

import pandas
import torch
from estimate_cost import Cell, cells_of, counted, fixed_and_slope, seconds_of_cells, solve_seconds, sweep_of
from hydra.errors import HydraException

from bitsplit import cell as one_cell
from bitsplit.config import Calibration, Settings
from bitsplit.errors import InputError, one_line
from bitsplit.layers import measure_batch_norm
from bitsplit.ptq import statistics_of
from bitsplit.report import MODEL_TITLES
from bitsplit.sweep import configured, expand

EXPERIMENT = "table5"
SETTINGS = Settings()


def benches(arguments: list[str]) -> dict[str, one_cell.Bench]:
    """The networks of the table by name, on the data that the arguments of run.py name."""
    config = sweep_of(EXPERIMENT, arguments)
    first = {dict(override.split("=", 1) for override in cell)["model"]: cell for cell in reversed(expand(config))}
    return {name: one_cell.Cell.of(configured(config, cell)).bench for name, cell in first.items()}


def measured(bench: one_cell.Bench) -> dict[str, float]:
    """As `estimate_cost.measured`, on two batches of the calibration; reading them is part of a forward's time."""
    started = time.perf_counter()
    batches = list(itertools.islice(bench.calibration, 2))
    reading = (time.perf_counter() - started) / sum(map(len, batches))
    network, device = bench.task.module, batches[0].device

    @torch.inference_mode()
    def forward(count: int) -> None:
        for batch in batches[:count]:
            network(batch)

    def statistics(count: int) -> None:
        patches = SETTINGS.calibration.patches * count // SETTINGS.calibration.gram_batches
        statistics_of(network, batches[:count], Settings(calibration=Calibration(len(batches[0]), count, patches, 1)))

    def batch_norm(count: int) -> None:
        measure_batch_norm(network, batches[:count], count)

    def of_one_batch(action) -> float:
        return fixed_and_slope(action, 1, 2, device)[1]

    forward(1)  # warms up
    size, calibration = len(batches[0]), SETTINGS.calibration.gram_batches
    return {
        "forward": of_one_batch(forward) / size + reading,
        "batch_norm": of_one_batch(batch_norm) / size + reading,
        "statistics": (of_one_batch(statistics) + reading * size) * calibration,
        "solve": solve_seconds(network, device),
    }


def row(name: str, bench: one_cell.Bench, cells: list[Cell]) -> dict:
    """The estimate of one network's cells."""
    images, speed = len(bench.task.data.scenes("val")), measured(bench)
    hours = seconds_of_cells(cells, speed, images, bench.calibration.batch_size) / 3600
    return {
        "network": MODEL_TITLES[name],
        "cells": len(cells),
        "pictures": images,
        "evaluation, pictures/s": 1 / speed["forward"],
        "hours": hours,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="+", metavar="KEY=VALUE", help="of run.py: the data, for example")
    arguments = parser.parse_args().arguments
    try:
        networks = benches(arguments)
    except (InputError, HydraException) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    cells = cells_of(EXPERIMENT, arguments)
    title = next(iter(networks.values())).task.title
    print(counted(title, {EXPERIMENT: cells}, {EXPERIMENT: EXPERIMENT}, arguments), flush=True)
    if not cells:
        return 0
    print("measuring this machine for an estimate, some minutes …", flush=True)
    new = {name: [cell for cell in cells if cell.model == name] for name in networks}
    table = pandas.DataFrame([row(name, networks[name], new[name]) for name in networks if new[name]])
    print(table.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    print(f"In all {table['hours'].sum():.1f} hours on this machine; COCO's own evaluation is not in it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
