"""Progress bars of the steps inside a run, and the seconds that they take."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


def progress(items: Iterable | None, what: str, total: int | None = None) -> tqdm:
    """A bar that shows on a terminal only and goes when it is done.

    None at all where BITSPLIT_PROGRESS is 0, as in the workers of a sweep: side by side they would write over each
    other and over the sweep's own bar.
    """
    disable = True if os.environ.get("BITSPLIT_PROGRESS") == "0" else None
    return tqdm(items, what, total=total, disable=disable, leave=False)


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Adds the time that the body takes to `seconds[phase]`."""
    start = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start
