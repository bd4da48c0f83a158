"""One run: from a resolved configuration to a record on disk."""

import dataclasses
import errno
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from bitsplit import ptq
from bitsplit.errors import InputError
from bitsplit.export.packed.save_load import load
from bitsplit.files import cache_root, check_writable, user_path
from bitsplit.kept import trim
from bitsplit.layers.precision import full_precision
from bitsplit.methods import Method
from bitsplit.plan import decided
from bitsplit.report import record
from bitsplit.report.summary import run_table
from bitsplit.runs import provenance
from bitsplit.runs.bench import KEPT, Bench, bench_of
from bitsplit.runs.devices import named_device
from bitsplit.runs.options import build_object, check_values, object_values, plain_values
from bitsplit.runs.products import PRODUCTS, Finished, file_in, wanted_products
from bitsplit.settings import BatchNorm, Bits, Cache, Calibration, Layers, Settings

# Of errors of the system those that say something about a place, and nothing about this program.
_PLACES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.ENAMETOOLONG}


@dataclass(frozen=True)
class Run:
    """What a configuration asks for: the shared bench, the method, the settings with nothing left to decide, and the
    place of the record."""

    bench: Bench
    method: Method
    settings: Settings
    variant: str
    device: str
    path: Path

    @classmethod
    def of(cls, config: DictConfig) -> "Run":
        """Raises InputError for whatever the user can put right."""
        method: Method = build_object("method", object_values(config, "method", "bitsplit.methods"))
        settings, device = settings_of(config), named_device(config.device)
        bench = _bench(config, settings, device, lockstep=method.order == "sequential")
        available, layers = len(bench.calibration), bench.task.layers
        settings = decided(settings, method, available)
        settings = dataclasses.replace(settings, layers=dataclasses.replace(layers, bits=settings.layers.bits))
        prescribed = BatchNorm().decided(method.batch_norm, available)
        network, data = bench.task.network, bench.task.data
        variant = "-".join(filter(None, [network.variant, _variant(method, settings, prescribed, data)]))
        names = (data.name, network.name, method.name)
        bits = settings.bits
        path = record.run_path(results_folder(config), *names, bits.wbits, bits.abits, settings.seed, variant)
        return cls(bench, method, settings, variant, device, path)

    @property
    def identity(self) -> dict:
        """Everything a result depends on, as plain values; folders do not belong to it."""
        data = self.bench.task.data
        fields = {key: value for key, value in dataclasses.asdict(data).items() if key != "root"}
        return {
            "model": self.bench.task.network.identity,
            "data": {"name": data.name, "title": self.bench.task.title, **fields, "files": self.bench.data_digest},
            "method": {"name": self.method.name, **dataclasses.asdict(self.method)},
            **dataclasses.asdict(self.settings),
        }

    def existing_record(self, force: bool | float = False) -> dict | None:
        """The record of this very configuration, if there is one; with `force` none, or none older than that time.

        Raises InputError where the record in its place is of other images or weights, and would be lost.
        """
        there = record.read(self.path)
        if there is None or (force and (force == 1 or self.path.stat().st_mtime < force)):
            return None
        identity = self.identity  # which asks the data's files
        if there["config_hash"] == record.config_hash(identity):
            return there
        parts = {"data": "images or preprocessing", "model": "weights"}
        if others := [what for part, what in parts.items() if there["config"][part] != identity[part]]:
            raise InputError(
                f"{self.path} is a record of other {' and other '.join(others)}; keep both with results=FOLDER, or "
                "replace it with force=true"
            )
        return None


def _bench(config: DictConfig, settings: Settings, device: str, lockstep: bool = False) -> Bench:
    model = object_values(config, "model", "bitsplit.networks")
    data = object_values(config, "data", "bitsplit.data")
    sizes = settings.calibration
    batches = max(sizes.gram_batches, sizes.scale_batches, settings.batch_norm.batches)
    if lockstep:
        batches = max(batches, sizes.lockstep_batches)
    return bench_of(model, data, Settings(calibration=sizes, seed=settings.seed), batches, device)


@contextmanager
def _named_places() -> Iterator[None]:
    """One line for a file or folder that the user alone can free, wherever in a run it is met."""
    try:
        yield
    except OSError as error:
        if error.errno not in _PLACES:
            raise
        raise InputError(
            f"{error.filename or 'a file'} cannot be used ({error.strerror}); permit it, make room, or give another "
            "place (results=FOLDER for records, BITSPLIT_CACHE=FOLDER for what is kept between runs)"
        ) from error


@_named_places()
@full_precision()
def run(config: DictConfig) -> tuple[dict, Path, bool]:
    """Runs what `config` asks for, unless its record is there with the same configuration hash and no file is wanted of
    the network: (record, its path, whether it ran).

    Raises InputError for whatever the user can put right, before anything is written.
    """
    started = time.perf_counter()
    provenance.commit()  # asked before the run: the tree may change while it lasts
    products = wanted_products(config)
    this, cache = Run.of(config), _cache_of(config)
    there = this.existing_record(config.force)
    if there and not products:
        return there, this.path, False

    check_writable(this.path.parent, "give another folder with results=FOLDER")  # before hours of computing
    bench, settings = this.bench, this.settings
    # First what finds wrong names of layers, before hours of evaluation.
    known = ptq.Known() if settings.floating_point else bench.known(this.method, settings)
    metrics = {"fp32": bench.float_metrics, "fp32_bn": bench.reestimated_metrics(settings.batch_norm)}
    quantized = ptq.quantize(bench.task.module, bench.calibration, method=this.method, settings=settings, known=known)
    evaluation_started = time.perf_counter()
    metrics["quantized"] = bench.task.evaluate(quantized, "quantized")
    finished = time.perf_counter()
    seconds = quantized.seconds | {"evaluation": finished - evaluation_started, "total": finished - started}
    new = _record(this, metrics, quantized, seconds)
    try:
        record.write(this.path, new)
    except (OSError, ValueError) as error:  # a full disk, say: no finished number is lost
        print(run_table(new))
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{this.path} could not be written ({reason}); its numbers are those above") from error
    for key, path in products.items():
        PRODUCTS[key](Finished(quantized, bench, new), path)
    trim((cache_root() / name for name in KEPT), cache.max_gb * 2**30)
    return new, this.path, True


@_named_places()
@full_precision()
def evaluate(config: DictConfig) -> dict:
    """What `run_table` prints of the packed network in the file `evaluate`, beside the floating-point one: a record
    with nothing but that, which is written nowhere.

    Raises InputError for a file that does not fit the configuration's model, and for whatever else the user can put
    right.
    """
    started = time.perf_counter()
    if wanted := [key for key in PRODUCTS if config[key] is not None]:
        raise InputError(
            f"evaluate=FILE quantizes nothing that {wanted[0]}=FILE could be made of; leave one of them out"
        )
    path, _ = file_in(config, "evaluate"), _cache_of(config)
    settings, device = settings_of(config), named_device(config.device)
    bench = _bench(config, settings, device)
    quantized = load(path, bench.task.module)
    metrics = {"fp32": bench.float_metrics, "quantized": bench.task.evaluate(quantized, "quantized")}
    method, settings = quantized.configuration["method"], quantized.configuration["settings"]
    return {
        "model": bench.task.network.name,
        "method": method["name"],
        "wbits": settings["bits"]["wbits"],
        "abits": settings["bits"]["abits"],
        "seed": settings["seed"],
        "data": {"title": bench.task.title},
        "metrics": metrics,
        "seconds": {"total": time.perf_counter() - started},
    }


def _record(run: Run, metrics: dict, quantized: torch.nn.Module, seconds: dict[str, float]) -> dict:
    lockstep_images = getattr(quantized, "lockstep_images", None)
    identity, task, network, calibration = run.identity, run.bench.task, run.bench.task.network, run.bench.calibration
    return {
        "config": identity,
        "config_hash": record.config_hash(identity),
        "model": network.name,
        "method": run.method.name,
        "wbits": run.settings.bits.wbits,
        "abits": run.settings.bits.abits,
        "seed": run.settings.seed,
        "variant": run.variant,
        "weights": {"file": network.weights, "sha256": network.sha256},
        "data": {
            "name": task.data.name,
            "title": task.title,
            "calibration_images": getattr(calibration, "readable", len(calibration) * calibration.batch_size),
            **({"lockstep_images": lockstep_images} if lockstep_images else {}),
        },
        "metrics": metrics,
        "batch_norm": run.settings.batch_norm.mode,
        "layers": json.loads(quantized.report.to_json(orient="records", double_precision=6)),
        "seconds": {phase: round(value, 2) for phase, value in seconds.items()},
        "device": run.device,
        **provenance.provenance(),
    }


def results_folder(config: DictConfig) -> Path:
    """Where the records lie; InputError where `results` is no path, or `force` says nothing about them."""
    if not isinstance(config.results, str) or not config.results:
        raise InputError(f"results must be a folder; got {config.results!r}")
    finite = not isinstance(config.force, float) or math.isfinite(config.force)
    if not isinstance(config.force, (bool, int, float)) or not finite:
        raise InputError(f"force must be true, false or a UNIX time; got {config.force!r}")
    return user_path(config.results)


def settings_of(config: DictConfig) -> Settings:
    """The frozen settings in a configuration; InputError for a value that is not allowed."""
    groups = {name: plain_values(config, name) for name in ("bits", "calibration", "batch_norm")}
    for (name, values), make in zip(groups.items(), (Bits, Calibration, BatchNorm), strict=True):
        check_values(make, name, values)
    if given := groups["bits"].keys() & {"wbits", "abits"}:
        raise InputError(f"bits.{min(given)} is a key of its own: {min(given)}=4, say")
    if config.layer_bits is not None and not OmegaConf.is_dict(config.layer_bits):
        raise InputError(f"layer_bits must map patterns to bits, as in {{fc:[8,8]}}; got {config.layer_bits!r}")
    return Settings(
        Bits(config.wbits, config.abits, **groups["bits"]),
        Calibration(**groups["calibration"]),
        BatchNorm(**groups["batch_norm"]),
        config.seed,
        Layers(bits=OmegaConf.to_container(config.layer_bits) if config.layer_bits else {}),
        config.convention,
    )


def _cache_of(config: DictConfig) -> Cache:
    values = plain_values(config, "cache")
    check_values(Cache, "cache", values)
    return Cache(**values)


def _variant(method: Method, settings: Settings, prescribed: BatchNorm, data: object) -> str:
    """Names what differs from the whole data and the method's own settings, "" for nothing, so that variants have files
    of their own. Images that are prescaled differ by their folder."""
    usual = dataclasses.replace(
        type(data)(), **{key: getattr(data, key) for key in ("root", "resize") if hasattr(data, key)}
    )
    groups = {
        "data": (data, usual),
        "bits": (settings.bits, _prescribed_bits(method, settings)),
        "calibration": (settings.calibration, Calibration()),
        "batch_norm": (settings.batch_norm, prescribed),
        "method": (method, type(method)()),
    }
    differing = [
        f"{group}.{field.name}={getattr(ours, field.name)}"
        for group, (ours, default) in groups.items()
        for field in dataclasses.fields(ours)
        if getattr(ours, field.name) != getattr(default, field.name)
    ]
    if settings.convention != Settings().convention:
        differing.insert(0, f"convention={settings.convention}")
    layer_bits = [f"{pattern}=w{wbits}a{abits}" for pattern, (wbits, abits) in settings.layers.bits]
    return "-".join([*differing, *layer_bits])


def _prescribed_bits(method: Method, settings: Settings) -> Bits:
    return Bits(settings.bits.wbits, settings.bits.abits).decided(method.edge_bits, settings.convention)
