"""Quantize a network, evaluate it and write one record: `python run.py model=resnet18 wbits=4 abits=4`."""

import os
import signal
import sys
import traceback
from concurrent.futures import BrokenExecutor
from pathlib import Path

_stopped = False  # by Ctrl-C or SIGTERM, whatever a library makes of the exception


def _stop(*_) -> None:
    global _stopped
    _stopped = True
    raise KeyboardInterrupt


for number in (signal.SIGINT, signal.SIGTERM):  # finished cells are kept, and nothing half-written is left
    signal.signal(number, _stop)

# Hydra then raises its own errors instead of printing them at length; `main` makes one line of each.
os.environ.setdefault("HYDRA_FULL_ERROR", "1")

# Huge pages for torch's feature maps, where the system has them: else page faults take half the time at 224×224.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# Threads that wait for each other sleep: spinning, two busy processes on one machine slow each other down tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

INTERRUPTED = "interrupted; finished cells are kept, and the same command goes on from there"
try:
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from hydra.utils import instantiate, to_absolute_path
    from omegaconf import DictConfig

    from bitsplit.data.console import prepare_console
    from bitsplit.errors import InputError, one_line
    from bitsplit.files import user_path
    from bitsplit.runs import sweep
    from bitsplit.runs.arguments import readable_arguments
    from bitsplit.runs.surroundings import check_working_directory, prepare_surroundings
except BaseException:  # the imports take a second, and some make an ImportError of an interrupt
    if not _stopped:
        raise
    print(INTERRUPTED, file=sys.stderr)
    os._exit(130)


_begun = False  # whether the configuration could be composed, so that a cell has begun


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def cell(config: DictConfig) -> None:
    global _begun
    _begun = True
    prepare_console()  # of a worker
    prepare_surroundings()
    from bitsplit.report.summary import run_line, run_table  # pandas and torch are not needed for --help

    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if in_sweep and not HydraConfig.get().launcher._target_.endswith("BasicLauncher"):
        os.environ["BITSPLIT_PROGRESS"] = "0"  # one bar over the cells, and none inside them
    try:
        if not in_sweep and (name := HydraConfig.get().runtime.choices.get("experiment")):
            raise InputError(f"experiment={name} is a sweep of many cells: add -m before it")
        if isinstance(config.results, str):  # a worker elsewhere writes where the sweep was started
            config.results = to_absolute_path(str(user_path(config.results)))
        from bitsplit.runs import experiment

        if _stopped:  # while a library was imported that took the exception for a failed import of its own
            raise KeyboardInterrupt
        if config.evaluate is not None:
            print(run_table(experiment.evaluate(config)))
            return
        record, path, ran = experiment.run(config)
    except Exception as error:
        if _stopped:
            raise KeyboardInterrupt from error
        if in_sweep:
            sweep.leave_outcome(error=_cause(error))
            return
        if isinstance(error, sweep.EXPECTED):
            # Here, and not in `main`: Hydra adds lines of its own to what leaves this function as an exception.
            sys.exit(_report(error))
        raise
    if ran and config.logger:
        _mirror(config, record, path)
    if in_sweep:
        sweep.leave_outcome(run_line(record), ran)
        return
    print(run_table(record))
    print(f"{'Wrote' if ran else 'Already there, not run again (force=true does):'} {os.path.relpath(path)}")
    for product in experiment.wanted_products(config).values():
        print(f"Wrote {os.path.relpath(product)} ({product.stat().st_size / 1e6:.2f} MB)")


def _mirror(config: DictConfig, record: dict, path: Path) -> None:
    """Logs the record to W&B. Whatever goes wrong with it, the record is safe."""
    group = _group() if HydraConfig.get().mode == RunMode.MULTIRUN else None
    try:
        instantiate(config.logger).log(record, path.parent, group)
    except Exception as error:
        print(f"warning: W&B has not got this run ({one_line(error)})", file=sys.stderr)


def _group() -> str:
    """The name that the cells of one sweep share."""
    settings = HydraConfig.get()
    return f"{settings.runtime.choices.get('experiment') or 'sweep'} {os.path.basename(settings.sweep.dir)}"


def main() -> int:
    """Exit code: 0, 2 for input to put right (one line on stderr), 1 if a cell broke, 130 after Ctrl-C or SIGTERM."""
    try:
        prepare_console()
        sys.argv[1:] = readable_arguments(sys.argv[1:])
        check_working_directory(sys.argv)
        if _flags().multirun:
            prepare_surroundings()  # before the workers are there
        cell()
        return sweep.close()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if _stopped:
            sweep.close(explained=True)
            print(INTERRUPTED, file=sys.stderr)
            return 130
        if isinstance(error, SystemExit) and error.__cause__:
            traceback.print_exception(error.__cause__)
        if _begun or isinstance(error, SystemExit):
            raise
        code = _report(error)  # whatever Hydra cannot make a configuration of was typed wrongly
        sweep.close(explained=True)
        return 1 if isinstance(error, BrokenExecutor) else code  # a worker was killed, mostly for want of memory


def _flags():
    """Hydra's flags; ends the process, with one line instead of Hydra's eight, where one is unknown."""
    parser = get_args_parser()
    parser.error = lambda message: sys.exit(_report(InputError(f"{message}; --help lists what there is")))
    return parser.parse_args()


def _cause(error: Exception) -> Exception:
    return error.__cause__ if isinstance(error.__cause__, InputError) else error


def _report(error: Exception) -> int:
    message, _, _ = str(_cause(error)).partition("Config search path:")
    print(f"error: {one_line(message)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    code = main()
    for number in (signal.SIGINT, signal.SIGTERM):  # all is written; Python alone tidies up
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
