"""Hours that the paper's tables take on full ImageNet, from throughput measured on this machine.

Command:  python experiments/estimate_cost.py [--device cuda] [--devices 8] [data=imagenet data.root=FOLDER]
Data:     none; random pictures and random weights, which take the same time. With arguments of run.py only the cells
          that have no record are counted
Expected: 5 minutes on 2 cores
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from PIL import Image
from torch import nn
from tqdm import tqdm

from bitsplit import cell as one_cell
from bitsplit import methods, solver
from bitsplit.config import FLOAT_BITS, BatchNorm, Bits, Calibration, Settings
from bitsplit.data.pictures import PictureFiles, Preprocessing
from bitsplit.errors import InputError, one_line
from bitsplit.layers import measure_batch_norm
from bitsplit.layout import grouped_weight
from bitsplit.ptq import statistics_of
from bitsplit.report import MODEL_TITLES
from bitsplit.stats import weighted_layers
from bitsplit.sweep import configured, expand, missing
from bitsplit.vision import torchvision

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
SETTINGS = Settings()
EXPERIMENTS = {"table4": "table4", "table-weights": "weights", "table-both": "both", "table4-equal": "table4_equal"}
CALIBRATION_PICTURES = SETTINGS.calibration.gram_batches * SETTINGS.calibration.batch_size
MOST_INPUTS = 4608  # of a timed solve; VGG's first linear layer has 25,088
ROWS = 64  # output channels of a timed solve; rows are independent, so its time is scaled to all of them


class Cell(NamedTuple):
    """What the time of a cell depends on."""

    model: str
    method: methods.Method
    bits: Bits
    batch_norm: BatchNorm

    @property
    def weights(self) -> "Cell":
        """The same for all cells that share their integer weights."""
        return self._replace(bits=replace(self.bits, abits=FLOAT_BITS))


def sweep_of(experiment: str, arguments: Sequence[str] = ()) -> DictConfig:
    """The configuration of `python run.py -m experiment=EXPERIMENT ARGUMENTS`."""
    overrides = [f"experiment={experiment}", *arguments]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        # `hydra.compose` knows single runs only, in which no argument may list several values.
        hydra = GlobalHydra.instance().hydra
        return hydra.compose_config("config", overrides, run_mode=RunMode.MULTIRUN, with_log_configuration=False)


def cells_of(experiment: str, arguments: Sequence[str] = ()) -> list[Cell]:
    """Every cell of an experiment, with what its method prescribes on full ImageNet.

    With arguments of run.py only those that have no record.
    """
    config = sweep_of(experiment, arguments)
    found = []
    for overrides in missing(config) if arguments else expand(config):
        cell, chosen = configured(config, overrides), dict(override.split("=", 1) for override in overrides)
        method, settings = methods.named(chosen["method"]), one_cell.settings_of(cell)
        batch_norm = settings.batch_norm.decided(method.batch_norm, available=settings.batch_norm.batches)
        found.append(Cell(chosen["model"], method, settings.bits.decided(method.edge_bits), batch_norm))
    return found


def checked(arguments: Sequence[str]) -> str:
    """What the arguments of run.py name as data, in words; InputError where its cells could not run."""
    config = sweep_of("table4", arguments)
    return one_cell.Cell.of(configured(config, expand(config)[0])).bench.task.title


def counted(data: str, tables: dict[str, list[Cell]], experiments: dict[str, str], arguments: Sequence[str]) -> str:
    """How many cells of each table have no record, in words; `experiments` by table."""
    counts = (
        f"{name} {len(tables[name])} of {len(expand(sweep_of(experiment, arguments)))}"
        for name, experiment in experiments.items()
    )
    return f"{data}; cells without a record: {', '.join(counts)}"


def timed(action, device: torch.device) -> float:
    """Seconds of one call, everything on the device finished before and after it."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    synchronise()
    start = time.perf_counter()
    action()
    synchronise()
    return time.perf_counter() - start


def seconds_of(action, device: torch.device = CPU) -> float:
    """The shorter of two timings, after one call to warm up."""
    return min([timed(action, device) for _ in range(3)][1:])


def fixed_and_slope(action, small: int, large: int, device: torch.device) -> tuple[float, float]:
    """Seconds of `action(n)` as fixed + slope · n, from one timing at each of two sizes."""
    first, second = (timed(partial(action, size), device) for size in (small, large))
    slope = max(second - first, 0) / (large - small)
    return max(first - slope * small, 0), slope


def solve_seconds(network: nn.Module, device: torch.device) -> float:
    """Bit-split at 4 bits on every layer, timed once for each number of inputs on a few rows of a random problem."""
    total, known = 0.0, {}
    generator = torch.Generator().manual_seed(0)
    for layer in weighted_layers(network).values():
        groups, rows, all_inputs = grouped_weight(layer).shape
        weight = grouped_weight(layer)[:, :, :MOST_INPUTS].contiguous()
        inputs = weight.shape[-1]
        if (groups, inputs) not in known:
            patches = torch.randn(groups, inputs + 64, inputs, generator=generator).to(device)
            gram = patches.mT @ patches / patches.shape[1]

            def solve(count: int, gram=gram, weight=weight) -> None:
                part = weight[:, :count].contiguous()
                solver.solve(gram, part @ gram, bits=4, weight=part)

            known[groups, inputs] = fixed_and_slope(solve, ROWS // 2, ROWS, device)
        fixed, slope = known[groups, inputs]
        total += (fixed + slope * rows) * (all_inputs / inputs) ** 2  # an update costs N, and there are N
    return total


def decoding_seconds() -> float:
    """Seconds to read, resize and crop one JPEG picture of ImageNet's usual size on one core."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "picture.jpg"
        noise = torch.randint(0, 256, (12, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        Image.fromarray(noise.numpy()).resize((500, 375)).save(path, quality=90)
        files = PictureFiles([path] * 20, [0] * 20, Preprocessing().evaluation(resize=256))
        return seconds_of(lambda: list(map(files.__getitem__, range(20)))) / 20


def measured(name: str, device: torch.device, pictures: int) -> dict[str, float]:
    """Seconds a picture of an evaluation and of a batch-norm pass; seconds of a whole calibration and a whole solve."""
    network = torchvision.models.get_model(name).eval().to(device, memory_format=torch.channels_last)
    images = torch.randn(pictures, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward() -> None:
        for piece in images.split(16 if device.type == "cpu" else pictures):
            network(piece)

    def statistics(count: int) -> None:
        patches = SETTINGS.calibration.patches * count // CALIBRATION_PICTURES
        statistics_of(network, [images[:count]], Settings(calibration=Calibration(count, 1, patches, 1)))

    speed = {
        "forward": seconds_of(forward, device) / pictures,
        "batch_norm": seconds_of(lambda: measure_batch_norm(network, [images], 1), device) / pictures,
    }
    fixed, slope = fixed_and_slope(statistics, pictures // 2, pictures, device)
    return speed | {"statistics": fixed + slope * CALIBRATION_PICTURES, "solve": solve_seconds(network, device)}


def seconds_of_cells(
    cells: list[Cell], speed: dict[str, float], images: int, batch: int = SETTINGS.calibration.batch_size
) -> float:
    """Seconds of the cells of one network: what all share, what those with the same weights share, each one's own.

    `images` pictures for validation, `batch` in a batch of the calibration.
    """
    seconds = images * speed["forward"] + speed["statistics"] if cells else 0
    batch_norm = SETTINGS.batch_norm.batches * batch * speed["batch_norm"]
    for _ in {cell.batch_norm.mode for cell in cells} - {"none"}:
        seconds += images * speed["forward"] + batch_norm  # the floating-point network with the same re-estimation
    for cell in {cell.weights for cell in cells}:
        seconds += 0 if cell.batch_norm.mode == "none" else batch_norm
        if hasattr(cell.method, "sweeps"):
            seconds += speed["solve"] * cell.bits.wbits / 4  # planes and sweeps grow with the bits
    scales = SETTINGS.calibration.scale_batches * batch * speed["forward"]
    for cell in cells:
        seconds += images * speed["forward"]
        if cell.bits.abits != FLOAT_BITS:
            seconds += scales + (0 if cell.batch_norm.mode == "none" else batch_norm)
        if hasattr(cell.method, "evaluations"):
            seconds += cell.method.evaluations * cell.method.images * speed["forward"]
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to measure")
    parser.add_argument("--devices", type=int, default=4, help="how many such devices share the cells (default: 4)")
    parser.add_argument("--images", type=int, default=50_000, help="validation pictures (default: 50000)")
    parser.add_argument("--pictures", type=int, default=32, help="pictures a measurement (default: 32)")
    parser.add_argument(
        "arguments", nargs="*", metavar="KEY=VALUE", help="of run.py: count only cells without a record"
    )
    arguments = parser.parse_args()
    device = torch.device(arguments.device)

    try:
        data = checked(arguments.arguments) if arguments.arguments else None
    except (InputError, HydraException) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    tables = {title: cells_of(experiment, arguments.arguments) for title, experiment in EXPERIMENTS.items()}
    if data:
        print(counted(data, tables, EXPERIMENTS, arguments.arguments), flush=True)
        if not any(tables.values()):
            return 0
        print("measuring this machine for an estimate, some minutes …", flush=True)
    networks = list(dict.fromkeys(cell.model for cells in tables.values() for cell in cells))
    speeds = {name: measured(name, device, arguments.pictures) for name in tqdm(networks, "measuring", disable=None)}
    print(f"\nMeasured on {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'this CPU'}, 224×224:")
    rows = [
        {
            "network": MODEL_TITLES[name],
            "evaluation, pictures/s": 1 / speed["forward"],
            "batch-norm, pictures/s": 1 / speed["batch_norm"],
            "calibration, s": speed["statistics"],
            "solve W4, s": speed["solve"],
        }
        for name, speed in speeds.items()
    ]
    print(pandas.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.1f}"))

    rows, known = [], set()
    for title, cells in tables.items():
        for name in networks:
            new = [cell for cell in dict.fromkeys(cells) if cell.model == name and cell not in known]
            known.update(new)
            seconds = seconds_of_cells(new, speeds[name], arguments.images)
            row = {"table": title, "network": MODEL_TITLES[name], "cells": len(new)}
            rows.append(row | {"images": len(new) * arguments.images, "hours": seconds / 3600})
    estimate = pandas.DataFrame(rows)
    total = {"table": "all", "network": ""} | estimate[["cells", "images", "hours"]].sum().to_dict()
    estimate = pandas.concat([estimate, pandas.DataFrame([total])], ignore_index=True)
    estimate[f"hours on {arguments.devices}"] = estimate["hours"] / arguments.devices
    print(
        "\nCells without those of the tables above; hours on one such device, and with the cells spread over several:"
    )
    print(estimate.to_string(index=False, float_format=lambda value: f"{value:.1f}"))
    print(f"\nDecoding is not in it: {1 / decoding_seconds():.0f} pictures of 500×375 a second and core here.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
