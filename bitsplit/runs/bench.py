"""Network, data and calibration that the runs of one process share, and what they have computed for each other."""

import dataclasses
import json
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import torch

from bitsplit import ptq
from bitsplit.data.making import images_made_by
from bitsplit.files import cache_root, facts_digest, files_digest, sources_digest, write_text
from bitsplit.kept import kept
from bitsplit.layers.batch_norm import FloatNorms
from bitsplit.methods import Method
from bitsplit.plan import Plan
from bitsplit.runs.options import build_object
from bitsplit.runs.weights_cache import cached_weights
from bitsplit.settings import FLOAT_BITS, BatchNorm, Settings
from bitsplit.statistics.batches import CalibrationBatches
from bitsplit.statistics.cache import cached_statistics
from bitsplit.statistics.reads import LayerReads
from bitsplit.tasks import task_of

_PACKAGE = Path(__file__).resolve().parents[1]
# Folders of the cache with what runs compute for each other.
KEPT = ("statistics", "weights", "predictions", "metrics", "images")


def _sources(*rooms: str) -> str:
    return sources_digest(path for room in rooms for path in (_PACKAGE / room).glob("*.py"))


_METRICS_CODE = _sources("layers", "networks", "statistics", "tasks")
_WEIGHTS_CODE = _sources("methods", "networks", "solver", "statistics", ".")


class Bench:
    """A task on a device with its calibration batches; nothing of it depends on method or bits.

    `known` hands on what runs have in common: statistics always, batch-norm of the floating-point network where the
    mode is the same, integer weights where runs differ in their activations or in batch-norm alone.
    """

    def __init__(self, source, data, settings: Settings, batches: int, device: str):
        self.task, self._device = task_of(source, data, torch.device(device)), device
        self._settings, self._batches = settings, batches
        root = getattr(data, "root", None)
        self._identity = {
            "network": self.task.network.identity,
            "data": dataclasses.asdict(data) | {"title": self.task.title, "root": root and str(Path(root).resolve())},
            "calibration": dataclasses.asdict(settings.calibration) | {"batches": batches, "seed": settings.seed},
            "images": images_made_by(),
            "arithmetic": [torch.device(device).type, torch.get_num_threads(), torch.__version__],
        }
        self._reads: dict[str, LayerReads] | None = None
        self._statistics: ptq.Statistics | None = None
        self._float_norms: dict[BatchNorm, FloatNorms | None] = {}
        self._weights: tuple[tuple, ptq.Weights] | None = None
        self._reestimated: dict[BatchNorm, dict] = {}

    def files_digest(self, times: bool = False) -> str | None:
        """What the files of the data are: by names and sizes for records, with `times` for what is kept on this
        machine. None for data that are drawn."""
        files = self.task.files(self.calibration)
        return files_digest(files, Path(self.task.data.root), times) if files else None

    @cached_property
    def data_digest(self) -> str | None:
        """`files_digest` as records have it, asked of the files once: ImageNet has 50,000 and a sweep many cells."""
        return self.files_digest()

    @cached_property
    def calibration(self):
        """The calibration batches of every step; a step that needs fewer reads the first of them."""
        return self.task.calibration(self._settings.calibration.batch_size, self._batches, self._settings.seed)

    def known(self, method: Method, settings: Settings) -> ptq.Known:
        """All that `ptq.quantize` needs but the activations, computed where it is not there yet."""
        network = ptq.evaluation_copy(self.task.module)
        batches = CalibrationBatches(self.calibration, network, self._settings.calibration.batch_size)
        plan = Plan.of(network, batches, method, settings, self._reads)
        self._reads = plan.reads
        if method.order == "sequential":  # nothing else is the same for two of them
            return ptq.Known(self._reads)
        if self._statistics is None:
            path = cache_root() / "statistics" / self._stem()
            collect = partial(ptq.measure_statistics, network, plan, batches)
            self._statistics = cached_statistics(path, network, collect, self._all_readable)
        if settings.batch_norm not in self._float_norms:
            self._float_norms[settings.batch_norm] = ptq.measure_norms(network, plan, batches)
        norms = self._float_norms[settings.batch_norm]
        bits = dataclasses.replace(settings.bits, abits=FLOAT_BITS)
        key = (method, bits, settings.layers)
        if self._weights is None or self._weights[0] != key:
            self._weights = None  # its memory is free before the next ones are made
            facts = {"method": [method.name, dataclasses.asdict(method)], "code": _WEIGHTS_CODE}
            facts |= {"bits": dataclasses.asdict(bits), "layers": dataclasses.asdict(settings.layers)}
            path = cache_root() / "weights" / self._stem(**facts)
            solve = partial(ptq.quantize_weights, network, plan, self._statistics)
            self._weights = key, cached_weights(path, self._device, solve, self._all_readable)
        return ptq.Known(self._reads, self._statistics, norms, self._weights[1])

    def _stem(self, **facts) -> str:
        """Names what is kept about this network, these images and `facts`; asks all files for their times."""
        return facts_digest(self._identity | {"files": self.files_digest(times=True)} | facts)[:16]

    @cached_property
    def float_metrics(self) -> dict:
        """Metrics of the floating-point network."""
        return self._kept_metrics("floating point", lambda: self.task.float_metrics)

    def reestimated_metrics(self, settings: BatchNorm) -> dict:
        """Metrics of the floating-point network with the same batch-norm re-estimation."""
        if settings.mode in ("none", "shift"):  # the shift between a network and itself is nothing
            return self.float_metrics

        def evaluate() -> dict:
            size = self._settings.calibration.batch_size
            network = ptq.reestimated(self.task.module, self.calibration, settings, size)
            return self.task.evaluate(network, "fp32_bn")

        if settings not in self._reestimated:
            self._reestimated[settings] = self._kept_metrics(dataclasses.asdict(settings), evaluate)
        return self._reestimated[settings]

    def _kept_metrics(self, what: object, evaluate: Callable[[], dict]) -> dict:
        """Of one network, for all processes that compare with it."""
        stem = self._stem(what=what, code=_METRICS_CODE)
        folder = cache_root() / "metrics"
        return kept(folder, stem, ".json", evaluate, _write_metrics, _read_metrics, self._all_readable)

    def _all_readable(self, made: object) -> bool:
        """Whether `made` is of all images: one that could not be read may be readable next time."""
        skipped = made.get("skipped") if isinstance(made, dict) else 0
        return not skipped and not getattr(self.calibration, "skipped", ())


def _write_metrics(path: Path, metrics: dict) -> None:
    write_text(path, json.dumps(metrics))


def _read_metrics(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


_benches: dict[str, Bench] = {}  # the last one alone: a network and its statistics are large
_data_sets: dict[str, object] = {}  # likewise; kept for the next network, for listing ImageNet takes a minute


def bench_of(model: dict, data: dict, settings: Settings, batches: int, device: str) -> Bench:
    """The bench of plain configurations `model` and `data`: the one of the run before, where it was the same."""
    sizes = [dataclasses.asdict(settings.calibration), settings.seed, batches, device]

    def make_bench() -> Bench:
        data_set = _last(_data_sets, facts_digest(data), lambda: build_object("data", data))
        return Bench(build_object("model", model), data_set, settings, batches, device)

    return _last(_benches, facts_digest({"model": model, "data": data, "sizes": sizes}), make_bench)


def _last(cache: dict, key: str, make):
    if key not in cache:
        cache.clear()
        cache[key] = make()
    return cache[key]
