"""Classifiers at reduced width for the embedded images, depth and topology unchanged: the paper's at a quarter of their
width, MobileNetV3-Small at three quarters."""

import torch
from torch import Tensor, nn

from bitsplit.vision import torchvision

WIDTH_DIVISOR = 4
_MOBILENET_WIDTH = 0.75
_LAST_STAGE = 9  # the block of MobileNetV3-Small that makes 4×4 positions 2×2
_resnet = torchvision.models.resnet


class NarrowResNet(_resnet.ResNet):
    """torchvision's ResNet with every channel count divided by `divisor`."""

    def __init__(self, block, layers: list[int], num_classes: int, divisor: int = WIDTH_DIVISOR):
        self.divisor = divisor  # `_make_layer` below already needs it inside the parent's constructor
        super().__init__(block, layers, num_classes)
        stem = 64 // divisor
        self.conv1 = nn.Conv2d(3, stem, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(stem)
        self.fc = nn.Linear(512 // divisor * block.expansion, num_classes)

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        if planes == 64:  # the first stage still expects the parent's 64-channel stem
            self.inplanes = 64 // self.divisor
        return super()._make_layer(block, planes // self.divisor, blocks, stride, dilate)


class NarrowVGG(nn.Module):
    """torchvision's VGG-16 with batch-norm; `divisor` divides the convolutions' channels.

    Its three linear layers are kept, but 512 wide instead of 4096: they read 2×2 positions here, where ImageNet's
    images leave 7×7.
    """

    def __init__(self, num_classes: int, divisor: int = WIDTH_DIVISOR, hidden: int = 512, positions: int = 2):
        super().__init__()
        plan = [width if width == "M" else width // divisor for width in torchvision.models.vgg.cfgs["D"]]
        self.features = torchvision.models.vgg.make_layers(plan, batch_norm=True)
        self.avgpool = nn.AdaptiveAvgPool2d(positions)
        self.classifier = nn.Sequential(
            nn.Linear(plan[-2] * positions**2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, num_classes),
        )
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def narrow_mobilenet(num_classes: int) -> nn.Module:
    """torchvision's MobileNetV3-Small, its channels times 3/4, with what suits 64×64 images.

    Kernels of 5×5 read no more than their 3×3 centre, since their feature maps are 8×8 and less, and the last stage
    keeps the 4×4 positions that it would halve.
    """
    network = torchvision.models.mobilenet_v3_small(num_classes=num_classes, width_mult=_MOBILENET_WIDTH)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (5, 5):
            module.kernel_size, module.padding = (3, 3), (1, 1)
            module.weight = nn.Parameter(module.weight.detach()[:, :, 1:4, 1:4].clone())
    for module in network.features[_LAST_STAGE].modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    return network


def narrow_classifier(name: str, num_classes: int) -> nn.Module:
    """The reduced-width network of that name, with random weights."""
    if name == "vgg16_bn":
        return NarrowVGG(num_classes)
    if name == "mobilenet_v3_small":
        return narrow_mobilenet(num_classes)
    block, layers = {
        "resnet18": (_resnet.BasicBlock, [2, 2, 2, 2]),
        "resnet50": (_resnet.Bottleneck, [3, 4, 6, 3]),
        "resnet101": (_resnet.Bottleneck, [3, 4, 23, 3]),
    }[name]
    return NarrowResNet(block, layers, num_classes)
