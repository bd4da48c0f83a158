"""What produced a result: package versions, machine, threads, commit and memory."""

import os
import platform
import resource
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numba
import torch


def provenance() -> dict:
    """What produced a result: package versions, machine, threads, commit and peak resident memory so far (MB)."""
    packages = ("bitsplit", "torch", "torchvision", "numpy", "pillow", "hydra-core")
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_initialized() else {}),
            "threads": {"torch": torch.get_num_threads(), "numba": numba.get_num_threads()},
        },
        "commit": commit(),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if _MAC else 2**10), 1),
    }


_MAC = sys.platform == "darwin"  # ru_maxrss is in bytes there and in kB elsewhere


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


@lru_cache
def commit() -> str:
    """Commit of this source tree, with "-dirty" where code or configuration differs; "unknown" outside a repository."""
    tree = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(tree)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = [*git, "status", "--porcelain", "--", "bitsplit", "conf", "run.py"]
        changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changed else head
