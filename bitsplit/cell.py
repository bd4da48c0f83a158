"""One cell of a table: from a resolved configuration to a record on disk."""

import dataclasses
import json
import time
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from bitsplit import ptq, record
from bitsplit.cache import cache_root
from bitsplit.config import FLOAT_BITS, BatchNorm, Bits, Calibration, Layers, Settings
from bitsplit.errors import InputError
from bitsplit.methods import Method
from bitsplit.statistics_cache import cached
from bitsplit.stats import Statistics
from bitsplit.tasks import task_of


class Bench:
    """Network, data and calibration that cells share within a process: nothing of it depends on method or bits."""

    def __init__(self, source, data, calibration: Calibration, batches: int, seed: int, device: str):
        self.task = task_of(source, data, torch.device(device))
        self._settings, self._batches = Settings(calibration=calibration, seed=seed), batches
        root = getattr(data, "root", None)
        self._identity = {
            "network": self.task.network.identity,
            "data": dataclasses.asdict(data) | {"title": self.task.title, "root": root and str(Path(root).resolve())},
            "calibration": dataclasses.asdict(calibration) | {"batches": batches, "seed": seed},
            "arithmetic": [device, torch.get_num_threads(), torch.__version__],
        }
        self._reestimated: dict[BatchNorm, dict] = {}
        self._stage: tuple[tuple, ptq.WeightStage] | None = None

    @cached_property
    def calibration(self):
        """The calibration batches of every step; a step that needs fewer reads the first of them."""
        return self.task.calibration(self._settings.calibration.batch_size, self._batches, self._settings.seed)

    @cached_property
    def statistics(self) -> Statistics:
        network = self.task.module
        path = cache_root() / "statistics" / record.config_hash(self._identity)[:16]
        return cached(path, network, lambda: ptq.statistics_of(network, self.calibration, self._settings))

    def stage(self, method: Method, settings: Settings) -> ptq.WeightStage:
        """The network with the method's integer weights, kept for the next cell: it may differ in activations only."""
        key = (method, dataclasses.replace(settings.bits, abits=FLOAT_BITS), settings.batch_norm)
        if self._stage is None or self._stage[0] != key:
            self._stage = None  # its memory is free before the next one is made
            network = self.task.module
            self._stage = key, ptq.quantize_weights(network, self.calibration, method, settings, self.statistics)
        return self._stage[1]

    def reestimated_metrics(self, wanted: BatchNorm) -> dict:
        """Metrics of the floating-point network with the same batch-norm re-estimation."""
        if wanted.mode in ("none", "shift"):  # the shift between a network and itself is nothing
            return self.task.floating_point[1]
        if wanted not in self._reestimated:
            network = ptq.reestimated(self.task.module, self.calibration, wanted)
            self._reestimated[wanted] = self.task.evaluate(network, "fp32_bn")
        return self._reestimated[wanted]


@dataclass(frozen=True)
class Cell:
    """What a configuration asks for: the shared bench, the method, the settings with nothing left to decide, and the
    place of the record."""

    bench: Bench
    method: Method
    settings: Settings
    variant: str
    device: str
    path: Path

    @classmethod
    def of(cls, config: DictConfig) -> "Cell":
        """Raises InputError for whatever the user can put right."""
        method: Method = instantiate(config.method)
        settings = settings_of(config)
        device = _device(config.device)
        model, data = (json.dumps(OmegaConf.to_container(config[key], resolve=True)) for key in ("model", "data"))
        wanted = settings.calibration
        batches = max(wanted.gram_batches, wanted.scale_batches, settings.batch_norm.batches)
        bench = _bench(model, data, wanted, batches, settings.seed, device)
        available = len(bench.calibration)
        bits = settings.bits.decided(method.edge_bits)
        batch_norm = settings.batch_norm.decided(method.batch_norm, available)
        settings = dataclasses.replace(settings, bits=bits, batch_norm=batch_norm, layers=bench.task.layers)
        own = BatchNorm().decided(method.batch_norm, available)
        variant = "-".join(filter(None, [bench.task.network.variant, _variant(method, settings, own)]))
        names = (bench.task.data.name, bench.task.network.name, method.name)
        path = record.run_path(Path(config.results), *names, bits.wbits, bits.abits, settings.seed, variant)
        return cls(bench, method, settings, variant, device, path)

    @property
    def identity(self) -> dict:
        """Everything a result depends on, as plain values; folders do not belong to it."""
        data, network = self.bench.task.data, self.bench.task.network
        fields = {key: value for key, value in dataclasses.asdict(data).items() if key != "root"}
        settings = dataclasses.asdict(self.settings)
        if self.settings.layers == Layers():
            del settings["layers"]  # as in the records of before there was a choice
        return {
            "model": network.identity,
            "data": {"name": data.name, "title": self.bench.task.title, **fields},
            "method": {"name": self.method.name, **dataclasses.asdict(self.method)},
            **settings,
        }

    def found(self, force: bool | float = False) -> dict | None:
        """The record of this very configuration, if there is one; with `force` none, or none older than that time."""
        run = record.read(self.path)
        if run is None or run["config_hash"] != record.config_hash(self.identity):
            return None
        return None if force and (force is True or self.path.stat().st_mtime < force) else run


def run(config: DictConfig) -> tuple[dict, Path, bool]:
    """Runs the cell, unless its record is there with the same configuration hash: (record, its path, whether it ran).

    Raises InputError for whatever the user can put right, before anything is written.
    """
    started = time.perf_counter()
    record.commit()  # asked before the run: the tree may change while it lasts
    cell = Cell.of(config)
    if found := cell.found(config.force):
        return found, cell.path, False

    bench, settings = cell.bench, cell.settings
    network = bench.task.network
    floating_point = bench.task.floating_point[1]
    reestimated = bench.reestimated_metrics(settings.batch_norm)
    shared = () if settings.bits.floating_point else (bench.statistics, bench.stage(cell.method, settings))
    quantized = ptq.quantize(bench.task.module, bench.calibration, cell.method, settings, *shared)
    evaluation_started = time.perf_counter()
    metrics = {"fp32": floating_point, "fp32_bn": reestimated, "quantized": bench.task.evaluate(quantized, "quantized")}
    finished = time.perf_counter()
    seconds = quantized.seconds | {"evaluation": finished - evaluation_started, "total": finished - started}
    identity = cell.identity
    new = {
        "config": identity,
        "config_hash": record.config_hash(identity),
        "model": network.name,
        "method": cell.method.name,
        "wbits": settings.bits.wbits,
        "abits": settings.bits.abits,
        "seed": settings.seed,
        "variant": cell.variant,
        "weights": {"file": network.weights, "sha256": network.sha256},
        "data": {
            "name": bench.task.data.name,
            "title": bench.task.title,
            "calibration_pictures": len(bench.calibration) * bench.calibration.batch_size,
        },
        "metrics": metrics,
        "batch_norm": settings.batch_norm.mode,
        "layers": json.loads(quantized.report.to_json(orient="records", double_precision=6)),
        "seconds": {phase: round(value, 2) for phase, value in seconds.items()},
        "device": cell.device,
        **record.provenance(),
    }
    record.write(cell.path, new)
    return new, cell.path, True


def settings_of(config: DictConfig) -> Settings:
    """The frozen settings in a configuration; InputError for a value that is not allowed."""
    return Settings(
        Bits(config.wbits, config.abits, **config.bits),
        Calibration(**config.calibration),
        BatchNorm(**config.batch_norm),
        config.seed,
    )


@lru_cache(maxsize=1)
def _bench(model: str, data: str, calibration: Calibration, batches: int, seed: int, device: str) -> Bench:
    return Bench(instantiate(json.loads(model)), _data(data), calibration, batches, seed, device)


@lru_cache(maxsize=1)
def _data(data: str):
    """Kept for the next network: listing the files of ImageNet takes a minute."""
    return instantiate(json.loads(data))


def _variant(method: Method, settings: Settings, own: BatchNorm) -> str:
    """Names what differs from the method's own settings, "" for nothing, so that variants have files of their own."""
    groups = {
        "bits": (settings.bits, Bits(settings.bits.wbits, settings.bits.abits).decided(method.edge_bits)),
        "calibration": (settings.calibration, Calibration()),
        "batch_norm": (settings.batch_norm, own),
        "method": (method, type(method)()),
    }
    differing = [
        f"{group}.{field.name}={getattr(ours, field.name)}"
        for group, (ours, default) in groups.items()
        for field in dataclasses.fields(ours)
        if getattr(ours, field.name) != getattr(default, field.name)
    ]
    return "-".join(differing)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name} is not available here; use device=cpu or device=auto") from error
    return name
