"""Where things that are made once are kept."""

import os
from pathlib import Path


def cache_root() -> Path:
    """`$BITSPLIT_CACHE`, or `~/.cache/bitsplit` without it."""
    return Path(os.environ.get("BITSPLIT_CACHE") or Path.home() / ".cache" / "bitsplit")
