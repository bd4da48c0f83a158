"""One cell of a table: from a resolved configuration to a record on disk."""

import dataclasses
import json
import time
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from bitsplit import ptq, record
from bitsplit.config import BatchNorm, Bits, Calibration, Settings
from bitsplit.errors import InputError
from bitsplit.methods import Method
from bitsplit.stats import Statistics
from bitsplit.tasks.classification import Classification


class Bench:
    """Network, data and calibration that cells share within a process: nothing of it depends on method or bits."""

    def __init__(self, source, data, calibration: Calibration, batches: int, seed: int, device: str):
        self.task = Classification(source, data, torch.device(device))
        self._settings, self._batches = Settings(calibration=calibration, seed=seed), batches
        self._reestimated: dict[BatchNorm, dict] = {}

    @cached_property
    def calibration(self):
        """The calibration batches of every step; a step that needs fewer reads the first of them."""
        return self.task.calibration(self._settings.calibration.batch_size, self._batches, self._settings.seed)

    @cached_property
    def statistics(self) -> Statistics:
        return ptq.statistics_of(self.task.network.module, self.calibration, self._settings)

    def reestimated_metrics(self, wanted: BatchNorm) -> dict:
        """Metrics of the floating-point network with the same batch-norm re-estimation."""
        if wanted.mode in ("none", "shift"):  # the shift between a network and itself is nothing
            return self.task.floating_point[1]
        if wanted not in self._reestimated:
            network = ptq.reestimated(self.task.network.module, self.calibration, wanted)
            self._reestimated[wanted] = self.task.evaluate(network, "fp32_bn")
        return self._reestimated[wanted]


def run(config: DictConfig) -> tuple[dict, Path, bool]:
    """Runs the cell, unless its record is there with the same configuration hash: (record, its path, whether it ran).

    Raises InputError for whatever the user can put right, before anything is written.
    """
    started = time.perf_counter()
    record.commit()  # asked before the run: the tree may change while it lasts
    method: Method = instantiate(config.method)
    settings = settings_of(config)
    device = _device(config.device)
    model, data = (json.dumps(OmegaConf.to_container(config[key], resolve=True)) for key in ("model", "data"))
    wanted = settings.calibration
    batches = max(wanted.gram_batches, wanted.scale_batches, settings.batch_norm.batches)
    bench = _bench(model, data, wanted, batches, settings.seed, device)
    batch_norm = settings.batch_norm.decided(method.batch_norm, available=len(bench.calibration))
    own = BatchNorm().decided(method.batch_norm, available=len(bench.calibration))
    settings = dataclasses.replace(settings, bits=settings.bits.decided(method.edge_bits), batch_norm=batch_norm)
    identity = _identity(bench, method, settings)
    bits = settings.bits
    name = {"model": bench.task.network.name, "method": method.name}
    cell = {"wbits": bits.wbits, "abits": bits.abits, "seed": settings.seed, "variant": _variant(method, settings, own)}
    path = record.run_path(Path(config.results), bench.task.data.name, **name, **cell)
    config_hash = record.config_hash(identity)
    found = record.read(path)
    if found and found["config_hash"] == config_hash and not config.force:
        return found, path, False

    network = bench.task.network
    floating_point = bench.task.floating_point[1]
    reestimated = bench.reestimated_metrics(settings.batch_norm)
    statistics = None if bits.floating_point else bench.statistics
    quantized = ptq.quantize(network.module, bench.calibration, method, settings, statistics)
    evaluation_started = time.perf_counter()
    metrics = {"fp32": floating_point, "fp32_bn": reestimated, "quantized": bench.task.evaluate(quantized, "quantized")}
    finished = time.perf_counter()
    seconds = quantized.seconds | {"evaluation": finished - evaluation_started, "total": finished - started}
    new = {
        "config": identity,
        "config_hash": config_hash,
        **name,
        **cell,
        "weights": {"file": network.weights, "sha256": network.sha256},
        "data": {
            "name": bench.task.data.name,
            "title": bench.task.title,
            "calibration_pictures": len(bench.calibration) * settings.calibration.batch_size,
        },
        "metrics": metrics,
        "batch_norm": settings.batch_norm.mode,
        "layers": json.loads(quantized.report.to_json(orient="records", double_precision=6)),
        "seconds": {phase: round(value, 2) for phase, value in seconds.items()},
        "device": device,
        **record.provenance(),
    }
    record.write(path, new)
    return new, path, True


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
    return Bench(instantiate(json.loads(model)), instantiate(json.loads(data)), calibration, batches, seed, device)


def _identity(bench: Bench, method: Method, settings: Settings) -> dict:
    """Everything a result depends on, as plain values; folders do not belong to it."""
    data, network = bench.task.data, bench.task.network
    fields = {key: value for key, value in dataclasses.asdict(data).items() if key != "root"}
    return {
        "model": {"name": network.name, "weights": network.weights, "sha256": network.sha256},
        "data": {"name": data.name, "title": bench.task.title, **fields},
        "method": {"name": method.name, **dataclasses.asdict(method)},
        **dataclasses.asdict(settings),
    }


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
