"""What the drawn data sets have in common: they are drawn on all cores, and kept in folders that name their code."""

import hashlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
import PIL
from tqdm import tqdm

from bitsplit.data.processes import available_cores, begin_worker
from bitsplit.errors import InputError


def draw_on_all_cores(draw: Callable, jobs: Iterable, what: str, unit: str, total: int) -> Iterator:
    """Yields `draw(job)`, which has a length, for every job, in order; the bar counts these lengths up to `total`."""
    # A forked worker does not import the caller's script again, so a script needs no `__main__` guard.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(available_cores(), context, begin_worker)
    try:
        with tqdm(total=total, desc=f"drawing {what}", unit=unit, disable=None) as progress:
            for result in pool.map(draw, jobs):
                progress.update(len(result))
                yield result
    finally:
        pool.shutdown(cancel_futures=True)


def check_count(key: str, count: object, most: int) -> None:
    """InputError where `data.KEY` is no number of images that there can be."""
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
        raise InputError(f"data.{key} must be a whole number in 1..{most}, got {count!r}")


def drawing_identity(*sources: str) -> str:
    """A mark of everything that what is drawn depends on: the source files, and the libraries that draw.

    To be taken at import, when the source on disk is still the code that draws.
    """
    code = b"".join(Path(source).read_bytes() for source in sources)
    versions = f"pillow {PIL.__version__} matplotlib {matplotlib.__version__} numpy {np.__version__}"
    return hashlib.sha256(code + versions.encode()).hexdigest()[:16]


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """InputError, with what to do, where the body cannot keep in `folder` what it draws."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror or error}); make room there, or name another folder with "
            "BITSPLIT_CACHE=FOLDER"
        ) from error
