"""`bitsplit.quantize` with what it cannot use: an InputError that says what to do, and nothing changed."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import bitsplit


def small() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64, 2)).eval()


IMAGES = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def pruned() -> nn.Module:
    network = small()
    prune.l1_unstructured(network[0], "weight", 0.5)
    return network


def in_a_dict() -> nn.Module:
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return {"logits": [self.convolution(x) / 0]}

    return Network()


class OnePass:
    """A loader that has batches for its first reader alone."""

    def __init__(self):
        self.batches = [IMAGES]

    def __len__(self):
        return 1

    def __iter__(self):
        batches, self.batches = self.batches, []
        return iter(batches)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.ReLU()), "no convolution or linear layer"),
        (lambda: "resnet18", "must be a torch.nn.Module, got str"),
        (lambda: None, "got NoneType"),
        (lambda: torch.nn.utils.weight_norm(small()[0]), "remove_weight_norm"),
        (pruned, "prune.remove"),
        (lambda: torch.compile(small()), "model._orig_mod"),
        (lambda: nn.Sequential(torch.compile(small())), "put model.0._orig_mod in its place"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "run the network on some images first"),
        (lambda: torch.jit.script(small()), "scripted or traced"),
        (lambda: torch.jit.trace(small(), IMAGES), "scripted or traced"),
        (lambda: torch.export.export(small(), (IMAGES,)), "got ExportedProgram"),
        (lambda: bitsplit.quantize(small(), [IMAGES]), "quantized already"),
        (lambda: small().half(), "quantize model.float"),
        (lambda: small().bfloat16(), "quantize model.float"),
        (lambda: small().to("meta"), "load the weights first"),
        (in_a_dict, "output holds NaN or infinity"),
    ],
)
def test_networks_that_cannot_be_quantized(model, message):
    with pytest.raises(bitsplit.InputError, match=message):
        bitsplit.quantize(model(), [IMAGES])


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "iterable of image batches"),
        ([], "calibration is empty"),
        ([IMAGES[:0]], "floating point"),
        ([(IMAGES * 255).byte()], "floating point; got .* in torch.uint8"),
        (["images"], "image batches"),
        (OnePass(), "a list of batches or a DataLoader"),
    ],
    ids=["none", "no batch", "no image", "bytes", "text", "one pass"],
)
def test_calibration_that_cannot_be_used(calibration, message):
    with pytest.raises(bitsplit.InputError, match=message):
        bitsplit.quantize(small(), calibration)


@pytest.mark.parametrize(
    "wrong", [{"method": 3}, {"method": "no_such"}, {"settings": {"bits": 4}}, {"bits": {"x": (4, 4)}}]
)
def test_arguments_of_another_type(wrong):
    with pytest.raises(bitsplit.InputError):
        bitsplit.quantize(small(), [IMAGES], **wrong)


def test_numpy_integers_are_bit_widths():
    report = bitsplit.quantize(small(), [IMAGES], wbits=np.int64(3), abits=np.int8(5)).report
    assert report.loc[1, ["wbits", "abits"]].tolist() == [3, 5]


class InPlace(nn.Module):
    """Normalises the images that it is given in place."""

    def __init__(self):
        super().__init__()
        self.network = small()

    def forward(self, x):
        return self.network(x.sub_(0.5).div_(0.25))


@pytest.mark.parametrize("mode", ["none", "reestimate", "shift"])
def test_the_callers_images_are_never_changed(mode):
    from bitsplit.settings import BatchNorm, Settings

    images = IMAGES.clone()
    settings = Settings(batch_norm=BatchNorm(mode=mode))
    quantized = bitsplit.quantize(InPlace(), [images], wbits=4, abits=4, settings=settings)
    assert torch.equal(images, IMAGES)
    normalised = (IMAGES.clone() - 0.5) / 0.25
    expected = bitsplit.quantize(small(), [normalised], wbits=4, abits=4, settings=settings)
    codes = [copy.deepcopy(module.state_dict()) for module in (quantized.network, expected)]
    assert all(torch.equal(codes[0][key], value) for key, value in codes[1].items())
