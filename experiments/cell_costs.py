"""The cells of an experiment, and what the seconds of a cell are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import NamedTuple

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig
from script import configurations

from bitsplit.methods import Method
from bitsplit.plan import decided
from bitsplit.runs.experiment import settings_of
from bitsplit.runs.sweep import expand, missing
from bitsplit.settings import FLOAT_BITS, BatchNorm, Calibration, Settings


class Cell(NamedTuple):
    """What the time of a cell depends on."""

    model: str
    method: Method
    settings: Settings

    @property
    def weights(self) -> "Cell":
        """The same for all cells that share their integer weights."""
        return self._replace(settings=self.settings.overridden(abits=FLOAT_BITS))


@dataclass(frozen=True)
class Speed:
    """Seconds that a network takes: an image's evaluation, an image's batch-norm pass, a whole calibration, and 4-bit
    weights for all layers by each of the solver's algorithms."""

    evaluation: float
    batch_norm: float
    calibration: float
    solve: dict[str, float]

    @classmethod
    def mean(cls, speeds: Sequence["Speed"]) -> "Speed":
        solve = {key: fmean(speed.solve[key] for speed in speeds) for key in speeds[0].solve}
        passes = (fmean(getattr(speed, key) for speed in speeds) for key in ("evaluation", "batch_norm", "calibration"))
        return cls(*passes, solve)


def sweep_of(experiment: str | None, arguments: Sequence[str] = ()) -> DictConfig:
    """The configuration of `python run.py -m experiment=EXPERIMENT ARGUMENTS`; needs `configurations()` around it."""
    overrides = [f"experiment={experiment}"] if experiment else []
    # `hydra.compose` knows single runs only, in which no argument may list several values.
    hydra = GlobalHydra.instance().hydra
    return hydra.compose_config(
        "config", [*overrides, *arguments], run_mode=RunMode.MULTIRUN, with_log_configuration=False
    )


def model_of(overrides: list[str]) -> str:
    """The network that a cell's overrides choose."""
    return dict(override.split("=", 1) for override in overrides)["model"]


def cells_of(experiment: str, arguments: Sequence[str] = ()) -> list[Cell]:
    """Every cell of an experiment, with what its method prescribes on full ImageNet.

    With arguments of run.py only those that have no record.
    """
    with configurations():
        sweep = sweep_of(experiment, arguments)
        choices = list(missing(sweep) if arguments else expand(sweep))
        return [Cell(model_of(overrides), *_terms(_without_model(overrides))) for overrides in choices]


def _without_model(overrides: list[str]) -> tuple[str, ...]:
    return tuple(override for override in overrides if override.split("=")[0].split(".")[0] != "model")


@lru_cache
def _terms(overrides: tuple[str, ...]) -> tuple[Method, Settings]:
    """Method and settings of a cell. Cached, for Hydra takes 50 ms to compose them and no network changes them."""
    config = compose("config", list(overrides))
    method, settings = instantiate(config.method), settings_of(config)
    return method, decided(settings, method, settings.batch_norm.batches)


def seconds_of_cells(cells: list[Cell], speed: Speed, images: int, batch_size: int = Calibration().batch_size) -> float:
    """Seconds of the cells of one network: what all share, what those with the same weights share, what each one has.

    `images` images for validation, `batch_size` in a batch of the calibration.
    """

    def batch_norm(settings: BatchNorm) -> float:
        return 0 if settings.mode == "none" else settings.batches * batch_size * speed.batch_norm

    evaluation = images * speed.evaluation
    seconds = evaluation + speed.calibration if cells else 0
    for settings in {cell.settings.batch_norm for cell in cells if cell.settings.batch_norm.mode != "none"}:
        seconds += evaluation + batch_norm(settings)  # the floating-point network with the same re-estimation
    for cell in {cell.weights for cell in cells}:
        if cell.method.algorithm:
            seconds += speed.solve[cell.method.algorithm] * cell.settings.bits.wbits / 4  # planes and rounds grow so
    for cell in cells:
        seconds += evaluation + cell.method.refinement_images * speed.evaluation + batch_norm(cell.settings.batch_norm)
        if cell.settings.bits.abits != FLOAT_BITS:
            seconds += cell.settings.calibration.scale_batches * batch_size * speed.evaluation
    return seconds
