"""Many cells through any of Hydra's launchers: which are missing, one progress bar, what failed.

Cells may run in other processes or on other machines, so each leaves its outcome as a file, and the process that
started the sweep watches for them. They lie in the sweep's folder, in one that no other sweep has, whatever folder that
was given.
"""

import contextlib
import importlib
import itertools
import json
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from bitsplit.errors import InputError, one_line
from bitsplit.files import abandoned, cache_root, check_writable, own_name, remove_abandoned, write_text
from bitsplit.progress import progress

# The files in conf/hydra/launcher/ bear the plugins' names on purpose; said here, workers hear it before they compose.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")

EXPECTED = (InputError, HydraException, OmegaConfBaseException)  # what the user can put right
_OUTCOMES = ".bitsplit-outcomes"  # with the marks of the sweep, a folder with a file for each cell that has ended
_HYDRAS_FILE = "multirun.yaml"  # which Hydra writes into the sweep's folder
_LAUNCHER_COUNTS = ("n_jobs", "nodes", "tasks_per_node", "cpus_per_task", "timeout_min", "array_parallelism")
_POLL_SECONDS = 0.3
_watch: "Watch | None" = None  # of this process; the callback itself is sent to the workers and must stay small
_outcomes: Path | None = None  # of the sweep whose cell this process runs


def expand(config: DictConfig) -> list[list[str]]:
    """The overrides of every cell of a sweep, in Hydra's order: the first parameter changes slowest."""
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    choices, hydra = {}, GlobalHydra.instance()
    loader = hydra.config_loader() if hydra.is_initialized() else None  # which glob(*) asks for what there is
    for override in OverridesParser.create(loader).parse_overrides([*params, *config.hydra.overrides.task]):
        key = override.get_key_element()
        swept = override.is_discrete_sweep() and override.is_sweep_override()
        values = override.sweep_string_iterator() if swept else [override.get_value_element_as_str()]
        choices[key] = [f"{key}={value}" for value in values]
    return [list(cell) for cell in itertools.product(*choices.values())]


def missing(config: DictConfig) -> Iterator[list[str]]:
    """The overrides of those cells of a sweep that have no record, with `force` also of those with an older one.

    Hydra composes each cell anew: 50 ms a cell on one core, 10 s for 200 cells that all have their records.
    """
    from bitsplit.runs.experiment import Run

    for overrides in progress(expand(config), "looking for records"):
        try:
            there = Run.of(compose("config", overrides)).existing_record(config.force)
        except Exception:  # whatever it is, the cell itself will say so
            there = None
        if not there:
            yield overrides


class Watch:
    """Follows a sweep's outcomes from the process that started it: a line and a step of the bar for each cell."""

    def __init__(self, folder: Path, results: Path, total: int):
        self.failures: list[dict] = []
        self._sweep_folder, self._made_here = folder, not folder.exists()
        self._had_config = (folder / _HYDRAS_FILE).exists()
        self._results = results
        self._total, self._seen = total, set()
        self._counts = {"run": 0, "there": 0}
        for killed in abandoned(folder, _OUTCOMES):
            _remove_outcomes(killed)
        self.outcomes = folder.absolute() / own_name(_OUTCOMES)
        self.outcomes.mkdir(parents=True)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Reads what has come in, and removes the files that the sweep has made, by their names; no folder that was
        there before, and none that holds anything else."""
        self._end.set()
        self._thread.join()
        for folder in (*self._results.glob("*/runs/"), *cache_root().glob("*/")):
            remove_abandoned(folder)  # after an interrupt launchers kill their workers
        if not all(failure["expected"] for failure in self.failures):
            return  # the outcomes hold the traces, and the launcher's own logs lie beside them
        _remove_outcomes(self.outcomes)
        if not self._had_config:
            (self._sweep_folder / _HYDRAS_FILE).unlink(missing_ok=True)
        if self._made_here:
            _remove_if_empty(self._sweep_folder)
            if self._sweep_folder.parent.name == ".hydra":  # the default place of sweeps
                _remove_if_empty(self._sweep_folder.parent)

    @property
    def never_started(self) -> int:
        return self._total - sum(self._counts.values()) - len(self.failures)

    def summary(self) -> str:
        text = f"{self._counts['run']} cells run, {self._counts['there']} already there, {len(self.failures)} failed"
        return text + (f", {self.never_started} never started" if self.never_started else "")

    def _follow(self) -> None:
        with tqdm(total=self._total, desc="cells", unit="cell", disable=None) as bar:
            ended = False
            while not ended:
                ended = self._end.wait(_POLL_SECONDS)
                bar.refresh()  # the elapsed time, while a long cell runs
                for path in sorted(self.outcomes.glob("[0-9]*.json")):
                    if path not in self._seen:
                        self._seen.add(path)
                        self._count(json.loads(path.read_text(encoding="utf-8")), bar)

    def _count(self, outcome: dict, bar: tqdm) -> None:
        if outcome["error"]:
            self.failures.append(outcome)
            bar.update()
        elif outcome["ran"]:
            self._counts["run"] += 1
            bar.update()
            bar.write(outcome["line"])
        else:  # takes no time, so it must not count in the estimate of the time left
            self._counts["there"] += 1
            bar.total -= 1
            bar.refresh()


def _remove_outcomes(folder: Path) -> None:
    for path in (*folder.glob("[0-9]*.json"), *folder.glob(".[0-9]*.tmp")):
        path.unlink(missing_ok=True)
    _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


class Cells(Callback):
    """Hydra's callback around a sweep and its cells (`hydra.callbacks` in conf/config.yaml).

    Launchers send it with every cell, so that it says in any process which sweep the cell is of.
    """

    def __init__(self):
        self._outcomes: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_) -> None:
        global _watch
        # Hydra turns an exception in a callback into a warning, and would go on without a watch.
        try:
            cells, results = _cells_to_run(config)
            _watch = Watch(Path(config.hydra.sweep.dir), results, len(cells))
            self._outcomes = _watch.outcomes
        except (*EXPECTED, OSError) as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            sys.exit(2)
        except Exception as error:  # shown by `main`, unless it comes of an interrupt that a library swallowed
            raise SystemExit(1) from error

    def on_job_start(self, **_) -> None:
        global _outcomes
        _outcomes = self._outcomes


def _cells_to_run(config: DictConfig) -> tuple[list[list[str]], Path]:
    """All cells of a sweep that has any left to run, and the folder of their records; the process ends here where it
    has none."""
    if message := _missing_launcher(config):
        raise InputError(message)
    for key in _LAUNCHER_COUNTS:
        if (count := config.hydra.launcher.get(key)) is not None and (not isinstance(count, int) or count == 0):
            raise InputError(f"hydra.launcher.{key} must be a whole number other than 0; got {count!r}")
    from bitsplit.runs.experiment import results_folder
    from bitsplit.runs.products import PRODUCTS

    for key in (*PRODUCTS, "evaluate"):
        if config[key] is not None or any(part.startswith(f"{key}=") for cell in expand(config) for part in cell):
            raise InputError(f"{key}=FILE is one file and a sweep has many cells; leave -m out, or {key}=FILE")
    results = results_folder(config)
    check_writable(results, "give another folder with results=FOLDER")
    check_writable(Path(config.hydra.sweep.dir), "give another folder with hydra.sweep.dir=FOLDER")
    cells = expand(config)
    if len({part for cell in cells for part in cell if part.startswith("experiment=")}) > 1:
        raise InputError("experiment names one sweep, and cannot be swept itself; start one after the other")
    if config.force != 1 and not any(missing(config)):
        print(f"all {len(cells)} cells have a record; force=true runs them again")
        sys.exit(0)
    return cells, results


def leave_outcome(line: str | None = None, ran: bool = False, error: Exception | None = None) -> None:
    """Called by a cell of a sweep when it has ended, wherever it runs: the line to show, or what went wrong."""
    hydra = HydraConfig.get()
    outcome = {
        "cell": " ".join(hydra.overrides.task),
        "line": line,
        "ran": ran,
        "error": error and one_line(error),
        "expected": isinstance(error, EXPECTED),
        "trace": "".join(traceback.format_exception(error)) if error else "",
    }
    write_text(_outcomes / f"{hydra.job.num:05d}.json", json.dumps(outcome))


def close(explained: bool = False) -> int:
    """Ends the watch of this process, if there is one, and reports what failed and, where nobody has `explained` it,
    that cells never started.

    Returns the exit code: 0, 2 if cells failed for reasons that the user can put right, 1 for any other reason, among
    them cells that never started.
    """
    if _watch is None:
        return 0
    _watch.close()
    print(_watch.summary())
    for failure in _watch.failures:
        if not failure["expected"]:
            print(failure["trace"], file=sys.stderr)
        print(f"error: {failure['cell']}: {failure['error']}", file=sys.stderr)
    if (count := _watch.never_started) and not explained:
        print(f"error: {count} cells never started; the same command runs them", file=sys.stderr)
    if count or not all(failure["expected"] for failure in _watch.failures):
        return 1
    return 2 if _watch.failures else 0


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
