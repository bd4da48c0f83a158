"""Files that a run makes of its quantized network beside the record, for those who ask."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from bitsplit.errors import InputError
from bitsplit.export.onnx.file import export_onnx, onnx_packages
from bitsplit.export.packed.save_load import save
from bitsplit.files import output_file, user_path
from bitsplit.runs.bench import Bench
from bitsplit.statistics.batches import CalibrationBatches


@dataclass(frozen=True)
class Finished:
    """What a run ends with, and what products are made of: the network, the bench that it stood on, its record."""

    network: nn.Module
    bench: Bench
    record: dict


def _write_onnx(finished: Finished, path: Path) -> None:
    images = CalibrationBatches(finished.bench.calibration, finished.network).first_piece()
    export_onnx(finished.network, path, images)


# By the key of the configuration that names the file.
PRODUCTS: dict[str, Callable[[Finished, Path], None]] = {
    "save": lambda finished, path: save(finished.network, path),
    "onnx": _write_onnx,
    "html": lambda finished, path: finished.network.to_html(path, finished.record["metrics"]),
}


def wanted_products(config: DictConfig) -> dict[str, Path]:
    """The files that a configuration asks for, by their keys; InputError for one that could not be written."""
    wanted = {key: file_in(config, key) for key in PRODUCTS if config[key] is not None}
    for key, path in wanted.items():
        if twice := [other for other in wanted if other != key and wanted[other].resolve() == path.resolve()]:
            raise InputError(f"{key} and {twice[0]} are both to be {path}; give each a file of its own")
        for given in ("weights", "config"):
            if isinstance(file := config.model.get(given), str) and user_path(file).resolve() == path.resolve():
                raise InputError(f"{key}={path} would overwrite model.{given}; give another file")
        output_file(path, key)
    if "onnx" in wanted:
        with onnx_packages():  # before the hours of a run
            pass
    return wanted


def file_in(config: DictConfig, key: str) -> Path:
    """The path under `key`; InputError where it is none."""
    if not isinstance(config[key], str) or not config[key]:
        raise InputError(f"{key} must be the name of a file; got {config[key]!r}")
    return user_path(config[key])
