"""What the scripts of this folder share: their command line, the configurations, and threads as in the records."""

import argparse
import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numba
import torch
from hydra import initialize_config_dir

from bitsplit.errors import InputError, one_line
from bitsplit.runs.sweep import EXPECTED

ROOT = Path(__file__).resolve().parents[1]
# Keys of run.py that leave a cell what it is, or give it a folder of its own.
_HARMLESS = ("data", "data.root", "data.resize", "device", "logger", "results")


def parser_of(description: str) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def configurations() -> AbstractContextManager:
    """Inside it, Hydra composes from conf/."""
    return initialize_config_dir(str(ROOT / "conf"), version_base="1.3")


def use_one_thread() -> None:
    """As the committed records: with more threads, sums are added in another order."""
    torch.set_num_threads(1)
    numba.set_num_threads(1)


def positive(text: str) -> int:
    """A count on the command line."""
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return count


def check_place(results: Path, keys: list[str]) -> None:
    """InputError where `keys` of run.py change what is computed and `results` is the folder of the committed cells:
    their names do not say such keys, and their table is of the defaults."""
    changing = [key for key in keys if key.partition("=")[0] not in _HARMLESS]
    if changing and results.resolve() == ROOT / "results":
        raise InputError(
            f"{changing[0]} changes what the cells in results/ are of; give another folder for the results"
        )


def in_one_line(main: Callable[[], int | None]) -> Callable[[], int]:
    """`main` as an exit code: what it returns, or 2, with one line on stderr, for what the user can put right."""

    @functools.wraps(main)
    def run() -> int:
        try:
            return main() or 0
        except EXPECTED as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2

    return run
