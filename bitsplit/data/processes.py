"""Worker processes: how many, and that they end with the process that started them."""

import multiprocessing
import os
import signal
import sys
import threading
import time

_LOOK_SECONDS = 1.0
_READERS = 8  # at most: images are decoded once, and each reader holds batches in memory


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reading_workers() -> dict:
    """Options of a DataLoader whose workers read images ahead; they end with the process that started them.

    What it collates should be arrays or bytes, which come through a pipe: tensors come through /dev/shm, of which a
    container has 64 MB, and where that is full the workers fail and the run hangs.
    """
    # Said outright: inside joblib's workers the default is a method of its own, in which no further process can start.
    method = "fork" if sys.platform == "linux" else "spawn"
    return {"num_workers": min(available_cores(), _READERS), "multiprocessing_context": method}


def end_with_parent() -> None:
    """Ends this process within seconds of its parent's end, even where that was killed and could tell nobody, and even
    where it was killed before this process came to call this."""
    parent = multiprocessing.parent_process().pid

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def begin_worker() -> None:
    """What every worker of a pool does first: leave Ctrl-C to the parent, take SIGTERM for the end, end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
