"""Quantize a network, evaluate it and write one record: `python run.py model=resnet18 wbits=4 abits=4`."""

import os
import sys

# Hydra then raises its own errors instead of printing them at length; `main` makes one line of each.
os.environ.setdefault("HYDRA_FULL_ERROR", "1")

# Huge pages for torch's feature maps, where the system has them: else page faults take half the time at 224×224.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from bitsplit.errors import InputError


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def cell(config: DictConfig) -> None:
    from bitsplit import cell as one_cell  # torch is not needed for --help
    from bitsplit.report import cell_table

    try:
        record, path, ran = one_cell.run(config)
    except (InputError, HydraException) as error:
        # Here, and not in `main`: Hydra adds lines of its own to what leaves this function as an exception.
        sys.exit(_report(error))
    print(cell_table(record))
    print(f"{'Wrote' if ran else 'Already there, not run again (force=true does):'} {path}")


def main() -> int:
    """Exit code: 0, 2 for input to put right (one line on stderr), 130 after Ctrl-C."""
    try:
        cell()
    except (HydraException, OmegaConfBaseException) as error:
        return _report(error)
    except KeyboardInterrupt:
        print("interrupted; finished cells are kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def _report(error: Exception) -> int:
    cause = error.__cause__ if isinstance(error.__cause__, InputError) else error
    message, _, _ = str(cause).partition("Config search path:")
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
