"""Convolutions of every geometry, small networks of them, and the feature maps that they read."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)  # the modules below are made once, at import
EVERYTHING = 10**6


class StaticSame(nn.Conv2d):
    """Pads by itself, on the far sides only, before a functional convolution."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 2, 0, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Keywords(nn.Conv2d):
    """Calls the functional convolution with keywords and defaults."""

    def forward(self, x):
        return F.conv2d(input=x, weight=self.weight, padding=1, groups=2)


# name: (module, how its input is padded (left, right, top, bottom), padding mode)
CONVOLUTIONS = {
    "plain": (nn.Conv2d(4, 6, 3), (0, 0, 0, 0), "constant"),
    "1x1": (nn.Conv2d(4, 6, 1, bias=False), (0, 0, 0, 0), "constant"),
    "1x1 strided": (nn.Conv2d(4, 6, 1, stride=2), (0, 0, 0, 0), "constant"),
    "stride": (nn.Conv2d(4, 6, 3, stride=2), (0, 0, 0, 0), "constant"),
    "stride, padding": (nn.Conv2d(4, 6, 3, stride=(2, 3), padding=(1, 2)), (2, 2, 1, 1), "constant"),
    "asymmetric kernel": (nn.Conv2d(4, 6, (5, 2), padding=(2, 1)), (1, 1, 2, 2), "constant"),
    "dilation": (nn.Conv2d(4, 6, 3, dilation=(2, 3), padding=2), (2, 2, 2, 2), "constant"),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (1, 1, 1, 1), "constant"),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1, stride=2), (1, 1, 1, 1), "constant"),
    "depthwise, multiplied": (nn.Conv2d(4, 8, 5, groups=4, padding=2), (2, 2, 2, 2), "constant"),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), (0, 0, 0, 0), "constant"),
    "same, odd": (nn.Conv2d(4, 6, (3, 5), padding="same"), (2, 2, 1, 1), "constant"),
    "same, even": (nn.Conv2d(4, 6, (2, 4), padding="same"), (1, 2, 0, 1), "constant"),
    "same, dilated": (nn.Conv2d(4, 6, (3, 2), dilation=(2, 3), padding="same"), (1, 2, 2, 2), "constant"),
    "reflect": (nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect"), (2, 2, 1, 1), "reflect"),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", stride=2), (1, 1, 1, 1), "circular"),
    "replicate, same": (nn.Conv2d(4, 6, 4, padding="same", padding_mode="replicate"), (1, 2, 1, 2), "replicate"),
    "own forward": (StaticSame(4, 6, (2, 3), stride=2), (0, 2, 0, 1), "constant"),
    "keywords": (Keywords(4, 6, 3, groups=2), (1, 1, 1, 1), "constant"),
}


def unfolded(layer, x, pad, mode):
    """torch's im2col matrix by group, (G, positions, N)."""
    x = F.pad(x, pad, mode=mode)
    columns = F.unfold(x, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
    columns = columns.unflatten(1, (layer.groups, -1))  # (B, G, N, L)
    return columns.permute(1, 0, 3, 2).flatten(1, 2)


def feature_maps(*sizes, channels=4, side=8, seed=0, dtype=torch.float64):
    """Batches of these sizes."""
    random = np.random.default_rng(seed)
    return [torch.tensor(random.standard_normal((n, channels, side, side)), dtype=dtype) for n in sizes]


class Block(nn.Module):
    """A residual block behind a stem; `change` is what happens to the stem's output between its two readers."""

    def __init__(self, change=lambda x: x):
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.a = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.b, self.down = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, stride=2)
        self.change = change

    def forward(self, x):
        x = self.stem(x).relu()
        y = self.b(self.a(x).relu())
        return y + self.down(self.change(x))


class Pyramid(nn.Module):
    """`a` and `b` read both levels, `c` the coarse one alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))

    def forward(self, x):
        levels = x, x[..., ::3, ::3]
        return sum(self.a(level).sum() + self.b(level).sum() for level in levels) + self.c(levels[1]).sum()


class Sometimes(Pyramid):
    """Calls `c` once more where the images' sum is positive."""

    def forward(self, x):
        return super().forward(x) + (self.c(x).sum() if x.sum() > 0 else 0)
