"""Many cells through any of Hydra's launchers: which are missing, one progress bar, what failed.

Cells may run in other processes or on other machines, so each leaves its outcome as a file in the sweep's folder, and
the process that started the sweep watches that folder.
"""

import importlib
import itertools
import json
import shutil
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from bitsplit import record
from bitsplit.errors import InputError, one_line

# The files in conf/hydra/launcher/ bear the plugins' names on purpose; said here, workers hear it before they compose.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")

CONF = Path(__file__).resolve().parents[1] / "conf"
_POLL_SECONDS = 0.3
_watch: "Watch | None" = None  # of this process; the callback itself is sent to the workers and must stay small


def expand(config: DictConfig) -> list[list[str]]:
    """The overrides of every cell of a sweep, in Hydra's order: the first parameter changes slowest."""
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    choices = {}
    for override in OverridesParser.create().parse_overrides([*given, *config.hydra.overrides.task]):
        key = override.get_key_element()
        swept = override.is_discrete_sweep() and override.is_sweep_override()
        values = override.sweep_string_iterator() if swept else [override.get_value_element_as_str()]
        choices[key] = [f"{key}={value}" for value in values]
    return [list(cell) for cell in itertools.product(*choices.values())]


def configured(config: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration of one cell, derived from the sweep's own.

    What Hydra's composition gives, in a hundredth of its time: groups are read from their files, keys are set.
    """
    cell = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    OmegaConf.set_struct(cell, False)
    parsed = OverridesParser.create().parse_overrides(overrides)
    for override in parsed:
        group = CONF / override.key_or_group
        if group.is_dir() and override.key_or_group != "experiment":
            cell[override.key_or_group] = _choice(group / f"{override.value()}.yaml")
    for override in parsed:
        if not (CONF / override.key_or_group).is_dir() and not override.key_or_group.startswith("hydra"):
            OmegaConf.update(cell, override.key_or_group, override.value())
    return cell


def missing(config: DictConfig) -> Iterator[list[str]]:
    """The overrides of those cells of a sweep that have no record, with `force` also of those with an older one."""
    from bitsplit.cell import Cell

    for overrides in expand(config):
        try:
            found = Cell.of(configured(config, overrides)).found(config.force)
        except (InputError, HydraException, OmegaConfBaseException):  # the cell itself will say so
            found = None
        if not found:
            yield overrides


@lru_cache
def _choice(path: Path) -> dict:
    return OmegaConf.to_container(OmegaConf.load(path), resolve=False)


class Watch:
    """Follows a sweep's outcomes from the process that started it: a line and a step of the bar for each cell."""

    def __init__(self, folder: Path, total: int):
        self.failures: list[dict] = []
        self._folder, self._total, self._seen = folder / "outcomes", total, set()
        self._counts = {"run": 0, "there": 0}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        # After a failure the launcher's own logs stay beside the outcomes.
        shutil.rmtree(self._folder if self.failures else self._folder.parent, ignore_errors=True)

    def summary(self) -> str:
        return f"{self._counts['run']} cells run, {self._counts['there']} already there, {len(self.failures)} failed"

    def _follow(self) -> None:
        with tqdm(total=self._total, desc="cells", unit="cell", disable=None) as progress:
            ended = False
            while not ended:
                ended = self._end.wait(_POLL_SECONDS)
                progress.refresh()  # the elapsed time, while a long cell runs
                for path in sorted(self._folder.glob("*.json")):
                    if path not in self._seen:
                        self._seen.add(path)
                        self._count(json.loads(path.read_text()), progress)

    def _count(self, outcome: dict, progress: tqdm) -> None:
        if outcome["error"]:
            self.failures.append(outcome)
            progress.update()
        elif outcome["ran"]:
            self._counts["run"] += 1
            progress.update()
            progress.write(outcome["line"])
        else:  # takes no time, so it must not count in the estimate of the time left
            self._counts["there"] += 1
            progress.total -= 1
            progress.refresh()


class Cells(Callback):
    """Hydra's callback around a sweep (`hydra.callbacks` in conf/config.yaml)."""

    def on_multirun_start(self, config: DictConfig, **_) -> None:
        global _watch
        if message := _missing_launcher(config):
            print(f"error: {message}", file=sys.stderr)
            sys.exit(2)
        cells = expand(config)
        if config.force is not True and not any(missing(config)):
            print(f"all {len(cells)} cells have a record; force=true runs them again")
            sys.exit(0)
        _watch = Watch(Path(config.hydra.sweep.dir), len(cells))


def leave_outcome(line: str | None = None, ran: bool = False, error: Exception | None = None) -> None:
    """Called by a cell of a sweep when it has ended, wherever it runs: the line to show, or what went wrong."""
    hydra = HydraConfig.get()
    outcome = {
        "cell": " ".join(hydra.overrides.task),
        "line": line,
        "ran": ran,
        "error": error and one_line(error),
        "expected": isinstance(error, InputError),
        "trace": "".join(traceback.format_exception(error)) if error else "",
    }
    path = Path(hydra.sweep.dir) / "outcomes" / f"{hydra.job.num:05d}.json"
    record.write_text(path, json.dumps(outcome))


def close() -> int:
    """Ends the watch of this process, if there is one, and reports what failed.

    Returns the exit code: 0, 2 if cells failed for reasons that the user can put right, 1 for any other reason.
    """
    if _watch is None:
        return 0
    _watch.close()
    print(_watch.summary())
    for failure in _watch.failures:
        if not failure["expected"]:
            print(failure["trace"], file=sys.stderr)
        print(f"error: {failure['cell']}: {failure['error']}", file=sys.stderr)
    if all(failure["expected"] for failure in _watch.failures):
        return 2 if _watch.failures else 0
    return 1


def _missing_launcher(config: DictConfig) -> str | None:
    package = config.hydra.launcher._target_.rpartition(".")[0].partition("hydra_plugins.")[2].partition(".")[0]
    extras = {"hydra_joblib_launcher": "joblib", "hydra_submitit_launcher": "slurm", "hydra_ray_launcher": "ray"}
    if package not in extras:
        return None
    try:
        importlib.import_module(f"hydra_plugins.{package}")
    except ImportError:
        return f"this launcher needs the extra `{extras[package]}`: pip install -e '.[{extras[package]}]'"
    return None
