"""The record of one run as JSON, complete or absent: its schema, its place, reading and writing."""

import hashlib
import json
import re
import sys
from pathlib import Path

import jsonschema

from bitsplit.files import facts_digest, write_text

_NUMBER, _TEXT, _COUNT = {"type": "number"}, {"type": "string"}, {"type": "integer", "minimum": 0}
_METRICS = {
    "type": "object",
    "properties": {"images": _COUNT, "skipped": _COUNT, "correct": _TEXT},
    "patternProperties": {"_ap_without$": {"type": "array", "items": _NUMBER}},
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
            "properties": {
                "name": _TEXT,
                "title": _TEXT,
                "calibration_images": _COUNT,
                "lockstep_images": _COUNT,
            },
            "required": ["name", "title", "calibration_images"],
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
        "digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    },
    "additionalProperties": False,
}
SCHEMA["required"] = list(SCHEMA["properties"])
_LONGEST_VARIANT = 120
_VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)  # made once: making it takes longer than a check


def config_hash(config: dict) -> str:
    """SHA-256 of a resolved configuration; equal configurations, in whatever order of keys, have equal hashes."""
    return facts_digest(config)


def run_path(
    results: Path, data: str, model: str, method: str, wbits: int, abits: int, seed: int, variant: str = ""
) -> Path:
    """results/<data>/runs/<model>-<method>-w4a4-s0[-variant].json

    A variant that is long, or has characters that a file name should not have, is shortened and told apart by a hash.
    """
    readable = re.sub(r"[^\w.=-]", "_", variant)[:_LONGEST_VARIANT]
    if readable != variant:
        readable = f"{readable}-{hashlib.sha256(variant.encode()).hexdigest()[:8]}"
    suffix = f"-{readable}" if variant else ""
    return results / data / "runs" / f"{model}-{method}-w{wbits}a{abits}-s{seed}{suffix}.json"


def read(path: Path) -> dict | None:
    """The record at `path`; None when there is none, or, with a warning, where what is there is none or was changed."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _VALIDATOR.validate(record)
        if record["digest"] == contents_digest(record):
            return record
        reason = "changed since it was written"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError, jsonschema.ValidationError):
        reason = "not a record"
    print(f"warning: {path} is left out: it is {reason}", file=sys.stderr)
    return None


def write(path: Path, record: dict) -> None:
    """Validates the record and puts it, with a digest of its contents, at `path` in one step. Raises
    jsonschema.ValidationError and then writes nothing."""
    record = record | {"digest": contents_digest(record)}
    _VALIDATOR.validate(record)
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def contents_digest(record: dict) -> str:
    """The hash of all that a record holds besides its digest: no number in it is changed by hand unnoticed."""
    return config_hash({key: value for key, value in record.items() if key != "digest"})
