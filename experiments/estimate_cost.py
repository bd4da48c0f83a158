"""Hours and disk that the paper's tables take on this machine, from a few images: by default on full ImageNet.

Command:  python experiments/estimate_cost.py [--devices 8] [data=imagenet data.root=FOLDER]
Data:     none; random images and random weights, which take the same time. With arguments of run.py those that they
          name (imagenet, coco, glyphs, …), and only the cells that have no record are counted; with
          hydra/launcher=joblib as many measure side by side as cells would run, for cores slow each other down
Expected: 5 minutes on 2 cores
"""

import multiprocessing
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing.synchronize import Barrier
from typing import NamedTuple

import numba
import pandas
import torch
from cell_costs import Cell, Speed, cells_of, model_of, seconds_of_cells, sweep_of
from hydra import compose
from hydra.utils import instantiate
from network_speed import Subject, decoding_seconds, measure_speed, random_subject, run_subject, statistics_bytes
from script import configurations, in_one_line, parser_of, positive
from tqdm import tqdm

from bitsplit.data.imagenet import IMAGENET_VALIDATION
from bitsplit.data.processes import available_cores, end_with_parent
from bitsplit.report.titles import model_title
from bitsplit.runs.devices import named_device
from bitsplit.runs.experiment import Run
from bitsplit.runs.sweep import expand

EXPERIMENTS = {  # by task, the experiment of each table in the order in which make runs them
    "classification": {
        "table4": "table4",
        "table4-equal": "table4_equal",
        "table-weights": "weights",
        "table-both": "both",
    },
    "detection": {"table5": "table5"},
}


def task_named_by(arguments: list[str]) -> str:
    """The task of the data that arguments of run.py name."""
    keys = {argument: argument.split("=")[0] for argument in arguments}
    naming = [argument for argument, key in keys.items() if key == "model" or key.split(".")[0] == "data"]
    with configurations():
        return instantiate(sweep_of(None, naming).data).task


def first_runs(experiment: str, arguments: list[str]) -> dict[str, list[str]]:
    """By network, the overrides of the experiment's first run with it."""
    first: dict[str, list[str]] = {}
    with configurations():
        for overrides in expand(sweep_of(experiment, arguments)):
            first.setdefault(model_of(overrides), overrides)
    return first


def run_of(overrides: list[str]) -> Run:
    with configurations():
        return Run.of(compose("config", overrides))


def workers_of(arguments: list[str]) -> int:
    """How many cells run at a time on this machine."""
    with configurations():
        launcher = sweep_of(None, arguments).hydra.launcher
    if "joblib" not in launcher._target_:
        return 1
    return launcher.n_jobs if launcher.n_jobs > 0 else available_cores()


class Measured(NamedTuple):
    """The speed of a network, what its statistics take on disk, and the sizes of what its cells read."""

    speed: Speed
    statistics_gb: float
    validation_images: int
    batch_size: int


def measure(subject: Subject, algorithms: list[str]) -> Measured:
    sizes = subject.validation_images, subject.calibration.batch_size
    return Measured(measure_speed(subject, algorithms), statistics_bytes(subject.network) / 1e9, *sizes)


def measure_run(overrides: list[str], algorithms: list[str], sample: int, images: int | None) -> Measured:
    return measure(run_subject(run_of(overrides), sample, images), algorithms)


def measure_side_by_side(workers: int, *arguments) -> Measured:
    """`measure_run(*arguments)` while `workers` processes do so at once: the mean of what they find."""
    if workers == 1:
        return measure_run(*arguments)
    context = multiprocessing.get_context("spawn")
    start = max(1, available_cores() // workers), context.Barrier(workers)
    with ProcessPoolExecutor(workers, context, begin_measuring, start) as pool:
        found = [job.result() for job in [pool.submit(measure_run, *arguments) for _ in range(workers)]]
    return found[0]._replace(speed=Speed.mean([each.speed for each in found]))


def begin_measuring(threads: int, start: Barrier) -> None:
    """Gives a worker its share of the cores, as joblib's have. All begin together, and Ctrl-C ends them at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent()
    torch.set_num_threads(threads)
    numba.set_num_threads(threads)
    start.wait()


def counts(experiments: dict[str, str], tables: dict[str, list[Cell]], arguments: list[str]) -> str:
    """How many cells of each table have no record, in words."""
    with configurations():
        every = {table: len(expand(sweep_of(experiment, arguments))) for table, experiment in experiments.items()}
    return ", ".join(f"{table} {len(tables[table])} of {number}" for table, number in every.items())


def speed_row(name: str, measured: Measured) -> dict:
    speed = measured.speed
    solve = {f"{algorithm} W4, s": seconds for algorithm, seconds in speed.solve.items()}
    return {
        "network": model_title(name),
        "statistics, GB": measured.statistics_gb,
        "evaluation, images/s": 1 / speed.evaluation,
        "batch-norm, images/s": 1 / speed.batch_norm,
        "calibration, s": speed.calibration,
        **solve,
    }


def hour_rows(name: str, tables: dict[str, list[Cell]], measured: Measured) -> list[dict]:
    """The hours of one network in each table, without the cells that an earlier table has."""
    rows, earlier = [], set()
    for table, cells in tables.items():
        new = [cell for cell in dict.fromkeys(cells) if cell.model == name and cell not in earlier]
        earlier.update(new)
        seconds = seconds_of_cells(new, measured.speed, measured.validation_images, measured.batch_size)
        row = {"table": table, "network": model_title(name), "cells": len(new)}
        rows.append(row | {"images": len(new) * measured.validation_images, "hours": seconds / 3600})
    return rows


def print_hours(rows: list[dict], tables: list[str], devices: int) -> None:
    estimate = pandas.DataFrame(sorted(rows, key=lambda row: tables.index(row["table"])))
    estimate = estimate[estimate["cells"] > 0]
    shared = f"hours on {devices}"
    estimate[shared] = estimate["hours"] / devices
    print(
        "\nCells without those of the tables above; hours on one such device, and with the cells spread over several:"
    )
    print(estimate.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    total = estimate[["cells", "images", "hours", shared]].sum()
    print(
        f"\nIn all {total['cells']:.0f} cells, {total['images']:,.0f} images, {total['hours']:.1f} hours on one such "
        f"device, {total[shared]:.1f} on {devices}."
    )


def estimate(arguments: list[str], device: torch.device, devices: int | None, images: int | None, sample: int) -> None:
    """Raises InputError and Hydra's errors where the cells could not run."""
    task = task_named_by(arguments) if arguments else "classification"
    experiments = EXPERIMENTS[task]
    first = first_runs(next(iter(experiments.values())), arguments) if arguments else {}
    title, workers = "random images of 224×224", 1
    if first:
        run, workers = run_of(next(iter(first.values()))), workers_of(arguments)
        title, device = run.bench.task.title, torch.device(run.device)
    tables = {table: cells_of(experiment, arguments) for table, experiment in experiments.items()}
    if arguments:
        print(f"{title}; cells without a record: {counts(experiments, tables, arguments)}", flush=True)
        if not any(tables.values()):
            return
        print("measuring this machine for an estimate, some minutes …", flush=True)

    speeds, rows = [], []
    for name in tqdm(dict.fromkeys(cell.model for cell in chain(*tables.values())), "measuring", disable=None):
        methods = {cell.method for cell in chain(*tables.values()) if cell.model == name}
        algorithms = sorted({method.algorithm for method in methods if method.algorithm})
        if arguments:
            measured = measure_side_by_side(workers, first[name], algorithms, sample, images)
        else:
            measured = measure(random_subject(name, device, sample, images or IMAGENET_VALIDATION), algorithms)
        speeds.append(speed_row(name, measured))
        rows += hour_rows(name, tables, measured)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    print(f"\nMeasured on {where}, {f'{workers} at a time, ' if workers > 1 else ''}{title}:")
    print(pandas.DataFrame(speeds).to_string(index=False, float_format=lambda value: f"{value:.1f}"))
    print_hours(rows, list(tables), devices or (workers if workers > 1 else 4))
    if arguments:
        left_out = "COCO's own evaluation" if task == "detection" else "decoding image files, once for all cells,"
        print(f"Reading the images is in it, {left_out} is not.")
    else:
        print(
            "Decoding, once for all cells, is not in it: "
            f"{1 / decoding_seconds():.0f} images of 500×375 a second and core here."
        )


@in_one_line
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--device", help="where to measure (default: a GPU where there is one)")
    parser.add_argument(
        "--devices", type=positive, help="how many such devices share the cells (default: joblib's workers, else 4)"
    )
    parser.add_argument("--images", type=positive, help="validation images (default: all of the data, or 50000)")
    parser.add_argument("--sample", type=positive, default=32, help="images of a measurement (default: 32)")
    parser.add_argument(
        "arguments", nargs="*", metavar="KEY=VALUE", help="of run.py: the data, for example; count what has no record"
    )
    options = parser.parse_args()
    arguments = options.arguments
    if arguments and options.device:
        arguments = [f"device={options.device}", *arguments]
    device = torch.device(named_device(options.device or "auto"))
    estimate(arguments, device, options.devices, options.images, options.sample)


if __name__ == "__main__":
    sys.exit(main())
