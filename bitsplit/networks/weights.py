"""Files of weights: shipped with the package, published elsewhere or a user's own; read without running any code."""

import functools
import os
import warnings
import zipfile
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from bitsplit.errors import InputError
from bitsplit.files import file_digest

SHIPPED = Path(__file__).resolve().parents[1] / "weights"
SHIPPED_SHA256 = {
    "resnet18_glyphs.safetensors": "f966fe3b5d5c406feceacb1e4ca2779e79e0421011c747aaebc65bcf940ee970",
    "resnet50_glyphs.safetensors": "f6cc38c880a78b9c35fd021b0c60a3dbbe4c1bdd93798cb15062986cde1c1da0",
    "resnet101_glyphs.safetensors": "b116000781e600d39bd84135c2aa1e80e2247d3fb91d674b8ef71200ccc1f619",
    "vgg16_bn_glyphs.safetensors": "976c3f1a4c328f8760da9451b3f20e609df7830c27e58d409004c0f6ef108093",
    "mobilenet_v3_small_glyphs.safetensors": "550346193e72bb3ee771fb301a912611f048001f29b6504933314b31a9b876e9",
    "retinanet_glyphs.safetensors": "2fa76e07e58ea1259c98bae4de56fd463ded1136a58bd6bac53aa8faca19cd34",
    "mask_rcnn_glyphs.safetensors": "ff09a545eef5f97178b3cba48b8475987531107a39196d68c7851dab90ba7461",
}
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}  # which turn into one another


def load_weights(name: str, module: nn.Module, path: Path) -> nn.Module:
    """`module` in eval mode with the weights in `path`; InputError, and `module` as it was, where they are damaged,
    another network's or no plain numbers."""
    own, state = module.state_dict(), _state_dict(path)
    missing = {key for key in own.keys() - state.keys() if not key.endswith("num_batches_tracked")}
    unexpected = state.keys() - own.keys()
    reshaped = {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    if differing := missing | unexpected | reshaped:
        raise InputError(
            f"{path} holds the weights of another network than {name}: {len(missing)} tensors missing, "
            f"{len(unexpected)} unknown, {len(reshaped)} of another shape, {min(differing)} among them; "
            f"give those of {name} with model.weights=FILE"
        )
    module.load_state_dict(own | {key: _converted(path, key, tensor, own[key]) for key, tensor in state.items()})
    return module.eval()


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors in `path` by their names, each of them dense and with its values."""
    existing_file(path)
    try:
        state = _read_tensors(path)
    except Exception as error:  # whatever a damaged file may lead to
        raise InputError(
            f"{path} cannot be read as weights: it must be an undamaged state dict (.pth or .safetensors), nothing but "
            "tensors; save the network's state_dict() again"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):  # a training framework's checkpoint
        state = state["state_dict"]
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path} is not a state dict: it must map parameter names to tensors")
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise InputError(
                f"{path} is not a state dict: it must map parameter names to tensors, and {key!r} is a "
                f"{type(tensor).__name__}; save the network's own state_dict()"
            )
        if not _is_dense(tensor):
            raise InputError(
                f"{path} holds {key} as {_kind(tensor)}; save it as a dense tensor with its values (.to_dense() and "
                ".dequantize() make one)"
            )
    return state


def _read_tensors(path: Path) -> object:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums that it writes by default
            if any(entry.CRC for entry in archive.infolist()) and (damaged := archive.testzip()):
                raise ValueError(f"{damaged} is damaged")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other ways to save
        return torch.load(path, map_location="cpu", weights_only=True)


def _is_dense(tensor: Tensor) -> bool:
    special = tensor.is_quantized or tensor.is_nested or type(tensor) not in (Tensor, nn.Parameter)
    return not special and tensor.layout == torch.strided and tensor.device.type == "cpu"


def _kind(tensor: Tensor) -> str:
    nested = "nested, " if tensor.is_nested else ""
    return f"{type(tensor).__name__} ({nested}{tensor.dtype}, {tensor.layout}, on {tensor.device})"


def _converted(path: Path, key: str, tensor: Tensor, own: Tensor) -> Tensor:
    """`tensor` with the type of the network's `own`: floating point from floating point, all else unchanged."""
    if tensor.dtype != own.dtype and not {tensor.dtype, own.dtype} <= _FLOATS:
        raise InputError(
            f"{path} holds {key} as {tensor.dtype}, and the network has {own.dtype} there; save the floating-point "
            "network's model.float().state_dict()"
        )
    converted = tensor.to(own.dtype)
    if not converted.isfinite().all():
        raise InputError(f"{path} holds NaN or infinity in {key}; give intact weights with model.weights=FILE")
    return converted


def existing_file(path: Path) -> Path:
    if not os.path.isfile(path):  # false too for a name that is no path, or too long
        raise InputError(f"model.weights={path} is not a file")
    return path


def weights_digest(path: Path) -> str:
    """SHA-256 of a file of weights, computed once a process as long as the file's size and time stay; InputError where
    it cannot be read."""
    try:
        facts = existing_file(path).stat()
        return _digest(path, facts.st_size, facts.st_mtime_ns)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); give other weights with model.weights=FILE"
        ) from error


@functools.cache
def _digest(path: Path, _size: int, _time: int) -> str:
    return file_digest(path)


def shipped(file: str) -> Path:
    """Path of weights that are part of the package; InputError where they are missing or damaged."""
    path = SHIPPED / file
    if not path.is_file() or weights_digest(path) != SHIPPED_SHA256[file]:
        raise InputError(f"the shipped weights {path} are missing or damaged; restore them with `git checkout {path}`")
    return path


def download(url: str) -> Path:
    """Local path of published weights, downloaded on first use; InputError where what is there is damaged.

    The file's name ends in the first digits of its SHA-256, by which it is checked.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    digits = path.stem.rpartition("-")[2]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digits)
        except (OSError, RuntimeError) as error:  # URLError is an OSError
            raise InputError(
                f"the weights could not be downloaded ({getattr(error, 'reason', error)}); on a machine with a network "
                f"fetch {url} and put it at {path}, or give model.weights=FILE"
            ) from error
    if not path.is_file() or not weights_digest(path).startswith(digits):
        raise InputError(
            f"{path} is damaged: its SHA-256 does not begin with {digits}; remove it, and the same command downloads "
            "it again, or give model.weights=FILE"
        )
    return path
