"""Progress bars of the steps inside a run."""

import os
from collections.abc import Iterable

from tqdm import tqdm


def progress(items: Iterable | None, what: str, total: int | None = None) -> tqdm:
    """A bar that shows on a terminal only and goes when it is done.

    None at all where BITSPLIT_PROGRESS is 0, as in the workers of a sweep: side by side they would write over each
    other and over the sweep's own bar.
    """
    disable = True if os.environ.get("BITSPLIT_PROGRESS") == "0" else None
    return tqdm(items, what, total=total, disable=disable, leave=False)
