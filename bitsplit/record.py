"""One JSON per run, complete or absent: written under a temporary name, checked against a schema, then renamed."""

import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import jsonschema

from bitsplit.cache import whole_file

_NUMBER, _TEXT, _COUNT = {"type": "number"}, {"type": "string"}, {"type": "integer", "minimum": 0}
_METRICS = {
    "type": "object",
    "properties": {"images": _COUNT, "skipped": _COUNT},
    "required": ["images", "skipped"],
    "additionalProperties": {"type": ["number", "null"]},
}
SCHEMA = {
    "type": "object",
    "properties": {
        "config": {"type": "object"},
        "config_hash": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "model": _TEXT,
        "weights": {"type": "object", "properties": {"file": _TEXT, "sha256": _TEXT}, "required": ["file", "sha256"]},
        "data": {
            "type": "object",
            "properties": {"name": _TEXT, "title": _TEXT, "calibration_pictures": _COUNT},
            "required": ["name", "title", "calibration_pictures"],
        },
        "method": _TEXT,
        "wbits": _COUNT,
        "abits": _COUNT,
        "seed": _COUNT,
        "variant": _TEXT,
        "metrics": {
            "type": "object",
            "properties": {"fp32": _METRICS, "fp32_bn": _METRICS, "quantized": _METRICS},
            "required": ["fp32", "fp32_bn", "quantized"],
            "additionalProperties": False,
        },
        "batch_norm": {"enum": ["none", "reestimate", "shift"]},
        "layers": {"type": "array", "items": {"type": "object", "required": ["name", "wbits", "abits"]}},
        "seconds": {"type": "object", "additionalProperties": _NUMBER},
        "peak_memory_mb": _NUMBER,
        "versions": {"type": "object", "additionalProperties": _TEXT},
        "device": _TEXT,
        "machine": {"type": "object"},
        "commit": _TEXT,
    },
    "additionalProperties": False,
}
SCHEMA["required"] = list(SCHEMA["properties"])
_VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)  # made once: making it takes longer than a check


def config_hash(config: dict) -> str:
    """SHA-256 of a resolved configuration; equal configurations, in whatever order of keys, have equal hashes."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def run_path(results: Path, data: str, model: str, method: str, wbits: int, abits: int, seed: int, variant: str = ""):
    """results/<data>/runs/<model>-<method>-w4a4-s0[-variant].json"""
    suffix = f"-{variant}" if variant else ""
    return results / data / "runs" / f"{model}-{method}-w{wbits}a{abits}-s{seed}{suffix}.json"


def read(path: Path) -> dict | None:
    """The record at `path`; None when there is none or what is there is not a whole one."""
    try:
        record = json.loads(path.read_text())
        _VALIDATOR.validate(record)
    except (OSError, json.JSONDecodeError, jsonschema.ValidationError):
        return None
    return record


def write(path: Path, record: dict) -> None:
    """Validates the record and puts it at `path` in one step. Raises jsonschema.ValidationError and then writes
    nothing."""
    _VALIDATOR.validate(record)
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Puts `text` at `path` whole or not at all, whatever happens in between."""
    with whole_file(path) as temporary:
        temporary.write_text(text)


def provenance() -> dict:
    """What produced a result: package versions, machine, commit and peak resident memory so far (MB)."""
    packages = ("bitsplit", "torch", "torchvision", "numpy", "pillow", "hydra-core")
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "machine": {"platform": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
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
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


@lru_cache
def commit() -> str:
    """Commit of this source tree, with "-dirty" where code or configuration differs; "unknown" outside a repository."""
    tree = Path(__file__).resolve().parents[1]
    git = ["git", "-C", str(tree)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = [*git, "status", "--porcelain", "--", "bitsplit", "conf", "run.py"]
        changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changed else head
