"""Quantize a network, evaluate it and write one record: `python run.py model=resnet18 wbits=4 abits=4`."""

import os
import sys

# Hydra then raises its own errors instead of printing them at length; `main` makes one line of each.
os.environ.setdefault("HYDRA_FULL_ERROR", "1")

# Huge pages for torch's feature maps, where the system has them: else page faults take half the time at 224×224.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# Threads that wait for each other sleep: spinning, two busy processes on one machine slow each other down tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import instantiate, to_absolute_path
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from bitsplit import sweep
from bitsplit.errors import InputError, one_line


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def cell(config: DictConfig) -> None:
    from bitsplit.report import cell_line, cell_table

    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if in_sweep and not HydraConfig.get().launcher._target_.endswith("BasicLauncher"):
        os.environ["BITSPLIT_PROGRESS"] = "0"  # one bar over the cells, and none inside them
    try:
        record, path, ran = _run(config, group=_group() if in_sweep else None)
    except Exception as error:
        if in_sweep:
            sweep.leave_outcome(error=_cause(error))
            return
        if isinstance(error, (InputError, HydraException)):
            # Here, and not in `main`: Hydra adds lines of its own to what leaves this function as an exception.
            sys.exit(_report(error))
        raise
    if in_sweep:
        sweep.leave_outcome(cell_line(record), ran)
        return
    print(cell_table(record))
    print(f"{'Wrote' if ran else 'Already there, not run again (force=true does):'} {path}")


def _run(config: DictConfig, group: str | None) -> tuple[dict, os.PathLike, bool]:
    from bitsplit import cell as one_cell  # torch is not needed for --help

    config.results = to_absolute_path(config.results)  # a worker elsewhere writes where the sweep was started
    record, path, ran = one_cell.run(config)
    if ran and config.logger:
        # Whatever goes wrong with the mirror, the record is safe.
        try:
            instantiate(config.logger).log(record, path.parent, group)
        except Exception as error:
            print(f"warning: W&B has not got this run ({one_line(error)})", file=sys.stderr)
    return record, os.path.relpath(path), ran


def _group() -> str:
    """The name that the cells of one sweep share."""
    settings = HydraConfig.get()
    return f"{settings.runtime.choices.get('experiment') or 'sweep'} {os.path.basename(settings.sweep.dir)}"


def main() -> int:
    """Exit code: 0, 2 for input to put right (one line on stderr), 1 if a cell broke, 130 after Ctrl-C."""
    try:
        cell()
    except (HydraException, OmegaConfBaseException) as error:
        return _report(error)
    except KeyboardInterrupt:
        sweep.close()
        print("interrupted; finished cells are kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return sweep.close()


def _cause(error: Exception) -> Exception:
    return error.__cause__ if isinstance(error.__cause__, InputError) else error


def _report(error: Exception) -> int:
    message, _, _ = str(_cause(error)).partition("Config search path:")
    print(f"error: {one_line(message)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
