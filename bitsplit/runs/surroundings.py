"""What a process finds around it: no home folder, no folder to keep files in, or a working directory that is gone."""

import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import bitsplit
from bitsplit.errors import InputError
from bitsplit.files import cache_root, check_writable, scratch_folder


def check_working_directory(arguments: Iterable[str]) -> None:
    """Goes on in a temporary folder where the working directory was deleted, which Hydra cannot stand; InputError where
    the results would go with it."""
    try:
        os.getcwd()
    except OSError as error:
        results = [text.partition("=")[2].strip("'\"") for text in arguments if text.startswith("results=")]
        if not any(map(os.path.isabs, results)):
            raise InputError(
                "the working directory was deleted; change to another one, or give results=/FOLDER, the whole path"
            ) from error
        os.chdir(scratch_folder())


@cache
def prepare_surroundings() -> None:
    """Gives this process and its workers a home, and the libraries that keep files folders that can be written.

    Before numba is imported, which compiles nothing where it can keep nothing.
    """
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = str(scratch_folder())
        print("warning: no home folder is known (HOME); nothing is kept for the next run", file=sys.stderr)
    package, home = Path(bitsplit.__file__).parent, Path.home()
    own = {
        "NUMBA_CACHE_DIR": [package / "solver" / "__pycache__"],
        "MPLCONFIGDIR": [
            Path(os.environ.get(variable) or home / folder) / "matplotlib"
            for variable, folder in (("XDG_CONFIG_HOME", ".config"), ("XDG_CACHE_HOME", ".cache"))
        ],
    }
    place = cache_root() if _is_writable(cache_root()) else scratch_folder()
    for variable, folders in own.items():
        given = os.environ.get(variable)
        if not all(map(_is_writable, [Path(given)] if given else folders)):
            os.environ[variable] = str(place.absolute() / variable.lower())
    os.environ["BITSPLIT_CACHE"] = str(cache_root().absolute())  # workers use the same


def _is_writable(folder: Path) -> bool:
    try:
        check_writable(folder, "")
    except InputError:
        return False
    return True
