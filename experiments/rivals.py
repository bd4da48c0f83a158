"""Rivals on equal terms: the same images, grid, input scales and edge bits for all, with the thread seconds beside.

Command:  make table-rivals   (or: python experiments/rivals.py [--networks resnet18] [--bits "4,4 3,3"] [KEY=VALUE …])
Data:     glyphs, embedded, or what the arguments of run.py name; after `make setup-rivals`
Expected: 2 to 15 minutes of one thread for each rival, network and bit-width; cells that have a record are not run
Writes:   one JSON a cell, and from them results/glyphs/table_rivals.md, .csv and .tex (or in the folder of the data)
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path

import torch
from hydra import compose
from rivals_table import rivals_table
from script import check_place, configurations, in_one_line, parser_of, positive, use_one_thread
from torch import Tensor, nn

import bitsplit
from bitsplit import ptq
from bitsplit.errors import InputError, one_line
from bitsplit.files import write_text
from bitsplit.layers.batch_norm import reestimate_batch_norm
from bitsplit.progress import progress
from bitsplit.report.record import config_hash
from bitsplit.report.render import write_table
from bitsplit.runs.arguments import readable_arguments
from bitsplit.runs.experiment import Run, results_folder
from bitsplit.runs.provenance import provenance
from bitsplit.settings import BatchNorm, Bits, Settings
from bitsplit.statistics.batches import CalibrationBatches
from bitsplit.tasks.classification import metrics

OURS = ("bitsplit_plus", "bitsplit_lattice", "bitsplit")
BREVITAS = {f"brevitas_{name}": name for name in ("gptq", "qronos", "gpfq", "learned_rounding")}
AIMET = {f"aimet_{name}": name for name in ("seq_mse", "adaround")}
RIVALS = (*OURS, *BREVITAS, *AIMET)
# Batch-norm: left alone; re-estimated in the quantized network; re-estimated in the floating-point network first.
TREATMENTS = ("none", "after", "before")
REESTIMATION = BatchNorm("reestimate")


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    network: str
    rival: str
    batch_norm: str
    wbits: int
    abits: int

    @property
    def file(self) -> str:
        return f"{self.network}-{self.rival}-{self.batch_norm}-w{self.wbits}a{self.abits}.json"


class Ground:
    """A network, its calibration batches and its validation images, the same for every cell; `limit` images at most."""

    def __init__(self, network: str, overrides: list[str], limit: int | None):
        config = compose("config", readable_arguments([f"model={network}", *overrides]))
        check_place(results_folder(config), [*overrides, *([f"--images={limit}"] if limit else [])])
        run = Run.of(config)
        self.task, self.seed = run.bench.task, run.settings.seed
        self.folder = results_folder(config) / self.task.data.name
        self._bench, self._limit = run.bench, limit

    def identity(self, cell: Cell) -> str:
        """A hash of what a cell is of."""
        what = {"model": self.task.network.identity, "data": self.task.title, "files": self._bench.data_digest}
        return config_hash(what | vars(cell) | {"seed": self.seed, "images": self._limit})

    @cached_property
    def images(self) -> list[Tensor]:
        """The calibration batches, in memory, so that no rival's seconds hold their drawing."""
        batches = CalibrationBatches(self._bench.calibration, self.task.module)
        return list(progress(batches.first(len(batches)), "calibration images", total=len(batches)))

    @cached_property
    def reference(self) -> tuple[Tensor, Tensor]:
        """Logits of the floating-point network, and labels."""
        return self._predict(self.task.module, "floating point")

    def evaluate(self, module: nn.Module, what: str) -> dict:
        logits, labels = self._predict(module, what)
        return {"metrics": metrics(logits, labels, self.reference[0], skipped=0)}

    @torch.inference_mode()
    def _predict(self, module: nn.Module, what: str) -> tuple[Tensor, Tensor]:
        logits, labels, count = [], [], 0
        preprocessing = self.task.network.preprocessing
        batches = self.task.data.validation(preprocessing, max(1, 2**20 // preprocessing.crop**2))
        for images, targets in progress(batches, what):
            logits.append(module(images.contiguous(memory_format=torch.channels_last)).float())
            labels.append(targets)
            count += len(targets)
            if self._limit and count >= self._limit:
                break
        return torch.cat(logits)[: self._limit], torch.cat(labels)[: self._limit]


def package(rival: str) -> str:
    """Who made the rival, with the version; raises InputError where it is not installed."""
    name, module = ("brevitas", "brevitas") if rival in BREVITAS else ("aimet-torch", "aimet_torch")
    if rival in OURS:
        return "bitsplit"
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{name} is not installed: pip install 'bitsplit[rivals]', or leave {rival} out of --rivals")
    return f"{name} {metadata.version(name)}"


def quantized(rival: str, network: nn.Module, images: list[Tensor], bits: tuple[int, int], seed: int) -> nn.Module:
    """`network` as the rival quantizes it, its batch-norm left alone."""
    if rival in OURS:
        return _ours(rival, network, images, bits, seed, BatchNorm("none"))
    from rival_problem import Problem

    problem = Problem.of(network, images, *bits, seed)
    if rival in BREVITAS:
        from rival_brevitas import solve
    else:
        from rival_aimet import solve
    return problem.quantized(solve((BREVITAS | AIMET)[rival], problem))


def _ours(rival: str, network: nn.Module, images: list, bits: tuple, seed: int, batch_norm: BatchNorm) -> nn.Module:
    settings = Settings(Bits(*bits), batch_norm=batch_norm, seed=seed)
    return bitsplit.quantize(network, images, method=rival, settings=settings)


def run_cells(ground: Ground, cells: list[Cell]) -> None:
    """Runs the cells of one rival, which differ in their batch-norm alone, and writes each as soon as it is known."""
    rival, bits = cells[0].rival, (cells[0].wbits, cells[0].abits)
    by_treatment = {cell.batch_norm: cell for cell in cells}
    network, images, total = ground.task.module, ground.images, len(ground.images)
    quantize = partial(quantized, rival, images=images, bits=bits, seed=ground.seed)
    if "before" in by_treatment:
        started = time.process_time()
        result = quantize(ptq.reestimated(network, images, REESTIMATION, len(images[0])))
        _write(ground, by_treatment["before"], result, time.process_time() - started)
    if not {"none", "after"} & by_treatment.keys():
        return
    started = time.process_time()
    result = quantize(network)
    seconds = time.process_time() - started
    if "none" in by_treatment:
        _write(ground, by_treatment["none"], result, seconds)
    if "after" in by_treatment:
        started = time.process_time()
        if rival in OURS:  # which re-estimate after the weights, and again after the inputs
            result, seconds = _ours(rival, network, images, bits, ground.seed, REESTIMATION), 0
        else:
            reestimate_batch_norm(result, CalibrationBatches(images, result).first(total), total, REESTIMATION.momentum)
        _write(ground, by_treatment["after"], result, seconds + time.process_time() - started)


def _write(ground: Ground, cell: Cell, network: nn.Module, seconds: float) -> None:
    values = ground.evaluate(network, cell.rival) | {"thread_seconds": round(seconds, 1)}
    _put(ground, cell, values)
    top1 = values["metrics"]["top1"]
    print(f"{cell.file.removesuffix('.json')}: top-1 {top1:.2f}, {seconds:.0f} thread seconds", flush=True)


def _put(ground: Ground, cell: Cell, values: dict) -> None:
    labels = {"data": ground.task.title, "seed": ground.seed, "package": package(cell.rival)}
    head = vars(cell) | labels | {"identity": ground.identity(cell), "calibration_images": sum(map(len, ground.images))}
    text = json.dumps(head | values | provenance(), indent=1, allow_nan=False)
    write_text(ground.folder / "rivals" / cell.file, text + "\n")


def records(folder: Path) -> list[dict]:
    """The cells that are there."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "rivals").glob("*.json"))]


def fill(ground: Ground, wanted: list[Cell]) -> None:
    """Runs the cells that have no record, one rival after another; one that fails is a row with the reason."""
    there = {record["identity"] for record in records(ground.folder)}
    missing: dict[tuple, list[Cell]] = {}
    for cell in wanted:
        if ground.identity(cell) not in there:
            missing.setdefault((cell.wbits, cell.abits, cell.rival), []).append(cell)
    for _, _, rival in missing:  # before hours of the others
        package(rival)
    for cells in progress(missing.values(), "rivals"):
        try:
            run_cells(ground, cells)
        except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            if cells[0].rival in OURS:
                raise
            print(f"{cells[0].rival} cannot run here: {one_line(error)}", flush=True)
            for cell in cells:
                _put(ground, cell, {"reason": one_line(f"{type(error).__name__}: {error}")[:200]})


def bit_pairs(text: str) -> list[tuple[int, int]]:
    """[(4, 4), (3, 32)] of "4,4 3,32"."""
    return [(int(wbits), int(abits)) for wbits, abits in (pair.split(",") for pair in text.split())]


def some_of(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of several of `choices`, in one text."""

    def names(text: str) -> list[str]:
        if unknown := [name for name in text.split() if name not in choices]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(choices)}")
        return text.split()

    return names


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__)

    def several(option: str, choices: Sequence[str]) -> None:
        help_text = f"some of: {' '.join(choices)} (default: all)"
        parser.add_argument(option, metavar="NAMES", type=some_of(choices), default=list(choices), help=help_text)

    parser.add_argument("--networks", metavar="NAMES", type=str.split, default=["resnet18"], help="of conf/model")
    parser.add_argument(
        "--bits", metavar="PAIRS", type=bit_pairs, default="4,4 3,3 3,32", help='default: "4,4 3,3 3,32"'
    )
    several("--rivals", RIVALS)
    several("--batch-norm", TREATMENTS)
    parser.add_argument("--images", type=positive, help="validation images, the first so many (default: all)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of run.py, data=imagenet for example")
    return parser.parse_args()


@in_one_line
def main() -> None:
    options = parse()
    use_one_thread()
    with configurations():
        for network in options.networks:
            ground = Ground(network, options.overrides, options.images)
            cells = [
                Cell(network, rival, treatment, *bits)
                for bits in options.bits
                for rival in options.rivals
                for treatment in options.batch_norm
            ]
            fill(ground, cells)
    print(write_table(rivals_table(records(ground.folder)), ground.folder, "table_rivals"))


if __name__ == "__main__":
    sys.exit(main())
