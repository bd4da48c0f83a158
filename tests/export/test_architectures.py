"""Architectures of others with random weights: quantized, summarized, saved, loaded, equal to the last bit, and proven
in integers."""

import pytest
import torch
from small_networks import SMALL
from torch import nn

import bitsplit
from bitsplit.vision import torchvision

models = torchvision.models
BLOCK = models.efficientnet.MBConvConfig
SIDE = 64


class UNet(nn.Module):
    """Two levels down and up, with transposed convolutions and concatenated shortcuts."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.bottom = self.unit(3, 8), self.unit(8, 16), self.unit(16, 32)
        self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, stride=2), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.side2, self.side1, self.head = self.unit(32, 16), self.unit(16, 8), nn.Conv2d(8, 2, 1)
        self.pool = nn.MaxPool2d(2)

    @staticmethod
    def unit(channels, wider):
        return nn.Sequential(nn.Conv2d(channels, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU())

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(self.pool(one))
        x = self.up2(self.bottom(self.pool(two)))
        x = self.up1(self.side2(torch.cat([x, two], 1)))
        return self.head(self.side1(torch.cat([x, one], 1)))


class OneAndTwo(nn.Module):
    """Conv2d on the image, Conv1d along its rows."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.along, self.head = nn.Conv1d(8, 16, 3), nn.Linear(16, 3)

    def forward(self, x):
        x = self.body(self.stem(x).relu()).relu().mean(dim=-1)
        return self.head(self.along(x).relu().mean(dim=-1))


class StandardizedConv2d(nn.Conv2d):
    """Convolves with its weight standardized by output channel and a learned gain, as networks without batch-norm."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x):
        spread, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (spread * self.weight[0].numel() ** 0.5) * self.gain
        return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class NormalizerFree(nn.Module):
    """Two residual branches of NF-ResNet: scaled activations and weights standardized in each forward."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = StandardizedConv2d(3, 8, 3, stride=2, padding=1), nn.Linear(8, 10)
        self.branches = nn.ModuleList(StandardizedConv2d(8, 8, 3, padding=1) for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        for branch in self.branches:
            x = x + 0.2 * branch(1.7 * x.relu())
        return self.head(x.relu().mean(dim=(2, 3)))


def efficientnet():
    settings = [BLOCK(1, 3, 1, 16, 8, 1, 1, 1), BLOCK(4, 3, 2, 8, 16, 1, 1, 1), BLOCK(4, 5, 2, 16, 24, 2, 1, 1)]
    return models.EfficientNet(settings, dropout=0.1, last_channel=64, num_classes=10)


def mobilenet_v3():
    block = models.mobilenetv3.InvertedResidualConfig
    settings = [block(16, 3, 16, 16, True, "RE", 2, 1, 1), block(16, 5, 48, 24, True, "HS", 2, 1, 1)]
    return models.MobileNetV3(settings, last_channel=64, num_classes=10)


def regnet():
    params = models.regnet.BlockParams.from_init_params(depth=6, w_0=16, w_a=12, w_m=2.2, group_width=8, se_ratio=0.25)
    return models.RegNet(params, num_classes=10)


def convnext():
    block = models.convnext.CNBlockConfig
    return models.ConvNeXt([block(16, 32, 1), block(32, 64, 1), block(64, None, 1)], num_classes=10)


def vision_transformer():
    network = models.VisionTransformer(SIDE, 16, 2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10)
    nn.init.normal_(network.heads.head.weight)  # which is zero before training
    return network


def swin(**version):
    return models.SwinTransformer([4, 4], 16, [1, 2], [2, 4], [4, 4], num_classes=10, **version)


def swin_v2():
    transformer = models.swin_transformer
    return swin(block=transformer.SwinTransformerBlockV2, downsample_layer=transformer.PatchMergingV2)


ARCHITECTURES = {
    "MobileNetV2": lambda: models.MobileNetV2(num_classes=10, width_mult=0.25),
    "MobileNetV3": mobilenet_v3,
    "RegNet": regnet,
    "EfficientNet": efficientnet,
    "ConvNeXt": convnext,
    "ViT": vision_transformer,
    "Swin": swin,
    "SwinV2": swin_v2,
    "DenseNet": lambda: models.DenseNet(8, (2, 2, 2), 16, num_classes=10),
    "GoogLeNet": lambda: models.GoogLeNet(10, aux_logits=False, init_weights=False),
    "ShuffleNet": lambda: models.ShuffleNetV2([1, 2, 1], [8, 16, 32, 64, 64], num_classes=10),
    "SqueezeNet": lambda: models.SqueezeNet("1_1", num_classes=10),
    "MNASNet": lambda: models.MNASNet(0.35, num_classes=10),
    "ResNeXt": lambda: models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], 10, groups=4, width_per_group=4),
    "U-Net": UNet,
    "Conv1d beside Conv2d": OneAndTwo,
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "GoogLeNet" else ()) for n in ARCHITECTURES]
)
def test_leaves_the_process_and_comes_back(name, tmp_path):
    torch.manual_seed(0)
    network, images = ARCHITECTURES[name]().eval(), torch.rand(4, 3, SIDE, SIDE)
    quantized = bitsplit.quantize(network, [images], 4, 4, "tflite", settings=SMALL)
    assert "packed" in quantized.summary()
    bitsplit.save(quantized, tmp_path / "network.safetensors")
    torch.manual_seed(1)
    loaded = bitsplit.load(tmp_path / "network.safetensors", ARCHITECTURES[name]())
    with torch.no_grad():
        assert torch.equal(loaded(images), quantized(images)) and not torch.equal(loaded(images), network(images))
    assert loaded.summary() == quantized.summary() and loaded.report.equals(quantized.report)
    proof = bitsplit.verify(loaded, images)
    proven = proof[proof["note"] == ""]
    assert len(proven) > 0 and proven["rescale_deviation"].max() < 1e-6
    assert set(proof["name"]) <= set(loaded.report["name"])


@pytest.mark.parametrize("name", ["ViT", "Swin", "SwinV2", "Conv1d beside Conv2d"])
def test_what_stays_in_floating_point_is_said(name):
    torch.manual_seed(0)
    network, images = ARCHITECTURES[name]().eval(), torch.rand(4, 3, SIDE, SIDE)
    report = bitsplit.quantize(network, [images], 4, 4, "tflite", settings=SMALL).report
    matrices = sum(p.numel() for p in network.parameters() if p.numel() > max(p.shape))
    assert report["shape"].map(lambda shape: torch.Size(shape).numel()).sum() == matrices


def test_weights_that_a_forward_makes_anew_stay_in_floating_point_and_that_is_said(tmp_path):
    """NF-ResNet: to be quantized, its standardized weights must be put into plain convolutions first."""
    torch.manual_seed(0)
    network, images = NormalizerFree().eval(), torch.rand(4, 3, SIDE, SIDE)
    quantized = bitsplit.quantize(network, [images], 4, 4, "tflite", settings=SMALL)
    notes = quantized.report.set_index("name")["note"]
    assert notes[["stem", "branches.0", "branches.1"]].str.contains("computed anew in the forward").all()
    assert "warning: 94% of the weights are not quantized" in quantized.summary()
    bitsplit.save(quantized, tmp_path / "network.safetensors")
    loaded = bitsplit.load(tmp_path / "network.safetensors", NormalizerFree())
    with torch.no_grad():
        assert torch.equal(loaded(images), quantized(images))
