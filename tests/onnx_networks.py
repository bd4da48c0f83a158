"""Small networks with what is written into ONNX in a way of its own."""

import torch
import torch.nn.functional as F
from torch import nn


class Attentionless(nn.Module):
    """Linear layers on (N, positions, channels), one without a bias."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.patches, self.wide, self.back = nn.Conv2d(3, 16, 1), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5, bias=False)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.back(F.gelu(self.wide(x))).mean(1))


class Separable(nn.Sequential):
    """A depthwise convolution without a bias, and a 1×1 convolution straight behind it."""

    def __init__(self):
        torch.manual_seed(1)
        depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), depthwise, nn.Conv2d(8, 4, 1))


class Upsampling(nn.Module):
    """A transposed convolution whose outputs do not overlap, batch-norm behind it, and a reflected border."""

    def __init__(self, groups=1):
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2, groups=groups)
        self.last = nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect", bias=False)

    def forward(self, x):
        return self.last(F.silu(self.norm(self.up(self.stem(x).relu()))))


class OwnBorder(nn.Conv2d):
    """Pads in its forward, more on one side than on the other."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 0, 1, self.groups)


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.own, self.last = nn.Conv2d(3, 8, 3), OwnBorder(8, 8, 2, groups=2), nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.last(self.own(self.stem(x).relu()).relu()))


class Tied(nn.Module):
    """Two convolutions with one weight, each with batch-norm of its own; the gains of one are of both signs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.one, self.two = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.two.weight = self.one.weight
        self.one_norm, self.two_norm = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        nn.init.constant_(self.one_norm.weight, 1)
        self.two_norm.weight.data = torch.linspace(-1, 1, 8)

    def forward(self, x):
        x = self.one_norm(self.one(self.stem(x).relu())).relu()
        return self.last(self.two_norm(self.two(x)))
