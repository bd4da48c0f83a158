"""What the scripts of this folder share: their command line, the configurations, and threads as in the records."""

import argparse
from contextlib import AbstractContextManager
from pathlib import Path

import numba
import torch
from hydra import initialize_config_dir

ROOT = Path(__file__).resolve().parents[1]


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
