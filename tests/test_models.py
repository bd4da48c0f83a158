"""Networks: shipped weights, their accuracy as recorded, and EfficientNet-Lite0 where its packages are."""

import json

import pytest
import torch
from conftest import ROOT

from bitsplit.data.glyphs import Glyphs
from bitsplit.errors import InputError
from bitsplit.models import EfficientNetLite0, ResNet18
from bitsplit.narrow import NarrowResNet, narrow
from bitsplit.tasks.classification import Classification
from bitsplit.vision import torchvision


def test_narrow_resnet_is_torchvisions_at_divisor_1():
    torch.manual_seed(0)
    ours = NarrowResNet(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=1000, divisor=1)
    theirs = torchvision.models.resnet18()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_narrow_resnet_has_a_quarter_of_every_width():
    full = dict(torchvision.models.resnet18(num_classes=100).named_parameters())
    for name, parameter in narrow("resnet18", 100).named_parameters():
        channels = full[name].shape[0]
        assert parameter.shape[0] == (channels if name.startswith("fc.") else channels // 4), name


def test_shipped_resnet18_has_the_recorded_accuracy():
    recorded = json.loads((ROOT / "results" / "glyphs" / "training" / "resnet18.json").read_text())
    task = Classification(ResNet18(), Glyphs(), torch.device("cpu"))
    metrics = task.floating_point[1]
    assert metrics["images"] == 10_000
    assert metrics["top1"] == pytest.approx(recorded["top1"], abs=0.05)
    assert metrics["top5"] == pytest.approx(recorded["top5"], abs=0.05)
    assert metrics["agreement"] == 100


def test_efficientnet_lite0_loads_or_says_how():
    try:
        import efficientnet_lite_pytorch  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match="make setup-lite"):
            EfficientNetLite0().load("imagenet")
        return
    network = EfficientNetLite0().load("imagenet")
    assert network.module(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    assert not network.module.training
