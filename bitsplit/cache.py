"""Where things that are made once are kept, and how files come to be whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_root() -> Path:
    """`$BITSPLIT_CACHE`, or `~/.cache/bitsplit` without it."""
    return Path(os.environ.get("BITSPLIT_CACHE") or Path.home() / ".cache" / "bitsplit")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, put in its place at the end of the body; nothing is left if the body raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:  # an interrupt too
        os.unlink(name)
        raise
