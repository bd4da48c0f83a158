"""Seconds of what runs on a device, and the files of the benchmarks."""

import json
import time
from collections.abc import Callable, Iterable
from functools import partial

import pandas
import torch
from script import ROOT
from torch import Tensor, nn

from bitsplit.files import write_text
from bitsplit.runs.provenance import provenance
from bitsplit.statistics.batches import pieces

CPU = torch.device("cpu")


def seconds_once(action: Callable[[], object], device: torch.device = CPU) -> float:
    """Seconds of one call, everything on the device finished before and after it."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    synchronise()
    start = time.perf_counter()
    action()
    synchronise()
    return time.perf_counter() - start


def seconds_of(action: Callable[[], object], device: torch.device = CPU) -> float:
    """The shorter of two timings, after one call to warm up."""
    return min([seconds_once(action, device) for _ in range(3)][1:])


def fixed_and_slope(
    action: Callable[[int], object], small: int, large: int, device: torch.device
) -> tuple[float, float]:
    """Seconds of `action(n)` as fixed + slope · n, from one timing at each of two sizes."""
    first, second = (seconds_once(partial(action, size), device) for size in (small, large))
    slope = max(second - first, 0) / (large - small)
    return max(first - slope * small, 0), slope


@torch.inference_mode()
def forward(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """One pass, in the pieces that calibration and evaluation use as well."""
    for piece, _ in pieces(batches):
        network(piece)


def publish(name: str, title: str, table: pandas.DataFrame, text: str) -> None:
    """Prints `text` and writes what `keep` writes."""
    print(text)
    keep(name, title, table, text)


def keep(name: str, title: str, table: pandas.DataFrame, text: str) -> None:
    """Writes results/bench/`name`.md, `text` with the machine and versions, and all of `table` as CSV."""
    folder = ROOT / "results" / "bench"
    write_text(folder / f"{name}.csv", table.to_csv(index=False))
    origin = json.dumps(provenance(), ensure_ascii=False)
    write_text(folder / f"{name}.md", f"{title.splitlines()[0]}\n\n{text}\n\n`{origin}`\n")
