"""Networks: shipped weights, their accuracy as recorded, and EfficientNet-Lite0 where its packages are."""

import copy
import json

import pytest
import torch
from conftest import ROOT
from torch import nn

from bitsplit.data.glyphs import Glyphs
from bitsplit.errors import InputError
from bitsplit.networks.classifiers import (
    PAPER_NETWORKS,
    TORCHVISION_NETWORKS,
    EfficientNetLite0,
    EfficientNetLite1,
    EfficientNetLite2,
    MobileNetV3Small,
    PaperNetwork,
)
from bitsplit.networks.narrow import NarrowResNet, NarrowVGG, narrow_classifier
from bitsplit.networks.weights import SHIPPED, SHIPPED_SHA256
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
    for name, parameter in narrow_classifier("resnet18", 100).named_parameters():
        channels = full[name].shape[0]
        assert parameter.shape[0] == (channels if name.startswith("fc.") else channels // 4), name


# Other networks of the paper

RESNETS = {"resnet18": [2, 2, 2, 2], "resnet50": [3, 4, 6, 3], "resnet101": [3, 4, 23, 3]}


def modules(network):
    """Names and types of the modules inside, in order."""
    return [(name, type(module)) for name, module in network.named_modules() if name]


def geometry(module):
    return tuple(
        getattr(module, name, None)
        for name in ("kernel_size", "stride", "padding", "dilation", "groups", "eps", "momentum", "inplace")
    )


def assert_same_topology(ours, theirs):
    """The same modules under the same names; only channels may differ."""
    assert modules(ours) == modules(theirs)
    for (name, mine), other in zip(ours.named_modules(), theirs.modules(), strict=True):
        if name not in ("", "avgpool"):
            assert geometry(mine) == geometry(other), name
            assert (getattr(mine, "bias", None) is None) == (getattr(other, "bias", None) is None), name


@pytest.mark.parametrize("name", RESNETS)
def test_narrow_resnets_have_torchvisions_topology_and_a_quarter_of_its_channels(name):
    with torch.device("meta"):
        ours, theirs = narrow_classifier(name, 100), torchvision.models.get_model(name, num_classes=100)
    assert_same_topology(ours, theirs)
    assert (
        len([module for module in ours.modules() if isinstance(module, nn.Conv2d)])
        == {
            "resnet18": 20,
            "resnet50": 53,
            "resnet101": 104,
        }[name]
    )
    for key, value in theirs.state_dict().items():
        shape, full = ours.state_dict()[key].shape, value.shape
        quarters = [size if size in (1, 3, 7) else size // 4 for size in full]  # kernels and colours stay
        if key.startswith("fc."):
            quarters = [100, *[size // 4 for size in full[1:]]]
        elif key == "conv1.weight":
            quarters = [16, 3, 7, 7]
        assert list(shape) == quarters, key


@pytest.mark.parametrize("name", ["resnet50"])
def test_narrow_bottlenecks_are_torchvisions_at_divisor_1(name):
    with torch.device("meta"):
        ours = NarrowResNet(torchvision.models.resnet.Bottleneck, RESNETS[name], num_classes=10, divisor=1)
        theirs = torchvision.models.get_model(name, num_classes=10)
    assert modules(ours) == modules(theirs)
    random = torch.Generator().manual_seed(0)
    state = {}
    for key, value in theirs.state_dict().items():
        if key.endswith("running_var"):
            state[key] = torch.ones(value.shape)
        elif value.dtype == torch.float32:
            state[key] = torch.randn(value.shape, generator=random) * (value[0].numel() or 1) ** -0.5
        else:
            state[key] = torch.zeros(value.shape, dtype=value.dtype)
    images = torch.randn(1, 3, 64, 64, generator=random)
    outputs = []
    for network in (ours, theirs):
        network.load_state_dict(state, assign=True)
        with torch.no_grad():
            outputs.append(network.eval()(images))
    assert torch.equal(*outputs) and outputs[0].isfinite().all() and outputs[0].unique().numel() == 10


def test_narrow_vgg_has_torchvisions_topology_and_a_quarter_of_its_channels():
    with torch.device("meta"):
        ours, theirs = narrow_classifier("vgg16_bn", 100), torchvision.models.vgg16_bn(num_classes=100)
    assert_same_topology(ours, theirs)
    widths = [[m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)] for network in (ours, theirs)]
    assert len(widths[0]) == 13 and [4 * width for width in widths[0]] == widths[1]
    linear = [(m.in_features, m.out_features) for m in ours.modules() if isinstance(m, nn.Linear)]
    assert linear == [(128 * 2 * 2, 512), (512, 512), (512, 100)]
    assert ours(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, 100)


def test_narrow_vgg_is_torchvisions_at_divisor_1():
    torch.manual_seed(0)
    ours = NarrowVGG(num_classes=10, divisor=1, hidden=32, positions=7)
    with torch.device("meta"):
        theirs = torchvision.models.vgg16_bn(num_classes=10)
    wide = [m for m in theirs.modules() if isinstance(m, nn.Linear)]
    assert (wide[0].in_features, wide[-1].out_features) == (512 * 7 * 7, 10)
    theirs.classifier = copy.deepcopy(ours.classifier)  # 4096 wide there
    theirs.load_state_dict(ours.state_dict(), assign=True)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_narrow_mobilenet_is_torchvisions_but_for_its_channels_small_kernels_and_the_last_stride():
    with torch.device("meta"):
        ours = narrow_classifier("mobilenet_v3_small", 100)
        theirs = torchvision.models.mobilenet_v3_small(num_classes=100)
    assert modules(ours) == modules(theirs)
    pairs = [(n, m, t) for (n, m), t in zip(ours.named_modules(), theirs.modules(), strict=True) if n]
    convolutions = [(n, m, t) for n, m, t in pairs if isinstance(m, nn.Conv2d)]
    for name, mine, other in convolutions:
        assert mine.out_channels % 8 == 0 and 0.6 < mine.out_channels / other.out_channels <= 1, name
        assert (mine.groups > 1) == (other.groups > 1) and mine.groups in (1, mine.out_channels), name
        assert mine.kernel_size == tuple(min(size, 3) for size in other.kernel_size), name
        assert mine.stride == ((1, 1) if name.startswith("features.9.") else other.stride), name
        assert mine.padding == tuple(size // 2 for size in mine.kernel_size), name
    assert [geometry(mine) for _, mine, _ in pairs if not isinstance(mine, nn.Conv2d)] == [
        geometry(other) for _, _, other in pairs if not isinstance(other, nn.Conv2d)
    ]
    assert sum(m.groups > 1 for _, m, _ in convolutions) == 11
    assert sum(isinstance(m, nn.Hardswish) for m in ours.modules()) == 19
    with torch.device("meta"):
        assert ours.features(torch.zeros(1, 3, 64, 64)).shape == (1, 432, 4, 4)


def test_mobilenet_on_other_images_is_torchvisions(tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenet_v3_small().eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    network = MobileNetV3Small(weights=str(tmp_path / "weights.pth")).load("imagenet")
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(network.module(images), theirs(images))
    published = torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.transforms()
    ours = network.preprocessing
    assert (list(ours.mean), list(ours.std), [ours.crop]) == (published.mean, published.std, published.crop_size)
    assert ours.interpolation == published.interpolation.value


@pytest.mark.parametrize("name", [*RESNETS, "vgg16_bn", "mobilenet_v3_small"])
def test_narrow_networks_learn_and_differ_by_image(name):
    torch.manual_seed(0)
    network = narrow_classifier(name, 7)
    out = network(torch.randn(4, 3, 64, 64))
    assert out.shape == (4, 7) and out.isfinite().all() and out.std(dim=0).min() > 0
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "images", "tolerance"),
    [
        ("resnet18", 10_000, 0.05),
        ("resnet50", 2000, 2.5),
        ("resnet101", 2000, 2.5),
        ("vgg16_bn", 2000, 2.5),
        ("mobilenet_v3_small", 2000, 2.5),
    ],
    ids=TORCHVISION_NETWORKS,
)
def test_shipped_networks_have_the_recorded_accuracy(name, images, tolerance):
    recorded = json.loads((ROOT / "results" / "glyphs" / "training" / f"{name}.json").read_text())
    source = PaperNetwork(name) if name in PAPER_NETWORKS else MobileNetV3Small()
    task = Classification(source, Glyphs(validation_images=images), torch.device("cpu"))
    metrics = task.float_metrics
    assert metrics["images"] == images
    assert metrics["top1"] == pytest.approx(recorded["top1"], abs=tolerance)
    assert metrics["top5"] == pytest.approx(recorded["top5"], abs=tolerance)
    assert metrics["agreement"] == 100


def test_records_of_shipped_networks_have_the_accuracy_after_training():
    for path in (ROOT / "results" / "glyphs" / "runs").glob("*.json"):
        run = json.loads(path.read_text())
        trained = json.loads((ROOT / "results" / "glyphs" / "training" / f"{run['model']}.json").read_text())
        assert run["metrics"]["fp32"]["top1"] == pytest.approx(trained["top1"], abs=0.05), path
        assert run["weights"]["sha256"] == SHIPPED_SHA256[run["weights"]["file"]], path


def test_shipped_weights_are_small_and_all_named():
    files = sorted(SHIPPED.glob("*.safetensors"))
    assert {path.name for path in files} == set(SHIPPED_SHA256)
    detectors = [path for path in files if path.name.startswith(("retinanet", "mask_rcnn"))]
    assert sum(path.stat().st_size for path in files) < 25e6
    assert sum(path.stat().st_size for path in detectors) < 10e6
    assert (SHIPPED / "mobilenet_v3_small_glyphs.safetensors").stat().st_size < 3e6


@pytest.mark.parametrize("network_class", [EfficientNetLite0, EfficientNetLite1, EfficientNetLite2])
def test_efficientnet_lite_loads_or_says_how(network_class):
    try:
        import efficientnet_lite_pytorch  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match="make setup-lite"):
            network_class().load("imagenet")
        return
    network = network_class().load("imagenet")
    assert network.module(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    assert not network.module.training
