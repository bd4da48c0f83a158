"""Calibration images from many sources, and in batches of any size."""

import pytest
import torch
import torch.nn.functional as F
from small_networks import error_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import bitsplit
from bitsplit.errors import InputError
from bitsplit.layers.batch_norm import reestimate_batch_norm
from bitsplit.settings import BatchNorm, Bits, Calibration, Settings


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.ones(24, 3, 16, 16) * torch.linspace(0, 1, 24)[:, None, None, None])


def test_sources_of_calibration():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    expected = bitsplit.quantize(network, list(DataLoader(Stream(), batch_size=8)), 4, 4)
    found = bitsplit.quantize(network, DataLoader(Stream(), batch_size=8), 4, 4)
    assert torch.equal(found[2].codes, expected[2].codes)
    double = bitsplit.quantize(network, [images.double() for images in DataLoader(Stream(), batch_size=8)], 4, 4)
    assert torch.equal(double[2].codes, expected[2].codes)
    with pytest.raises(InputError, match="a list say"):
        bitsplit.quantize(network, torch.randn(8, 3, 16, 16), 4, 4)
    for method in ("bitsplit", "bitsplit_plus"):
        with torch.autocast("cpu", torch.bfloat16):
            bitsplit.quantize(network, DataLoader(Stream(), batch_size=8), 4, 4, method)


def trained_network() -> tuple[nn.Module, Tensor]:
    """A network whose batch-norm fits images of this kind, and images."""
    torch.manual_seed(0)
    images = F.avg_pool2d(2 * torch.randn(384, 3, 32, 32), 3, 1, 1) * (0.5 + torch.rand(384, 1, 1, 1))
    images = images + 2 * torch.randn(384, 3, 1, 1)
    layers, inputs = [], 3
    for outputs in (8, 16, 16, 16):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 6)).eval()
    for _ in range(6):
        reestimate_batch_norm(network, [images[:256]], 1, 1.0)
    return network, images


@pytest.mark.parametrize("size", [32, 8, 2, 1])
@pytest.mark.parametrize("method", ["bitsplit", "bitsplit_per_channel"])
def test_small_batches_quantize_as_well_as_large_ones(method, size):
    network, images = trained_network()
    calibration = images[256:]
    large = bitsplit.quantize(network, list(calibration.split(64)), 8, 8, method)
    small = bitsplit.quantize(network, list(calibration.split(size)), 8, 8, method)
    assert error_of(network, small, images[:256]) < 4 * error_of(network, large, images[:256])


@pytest.mark.parametrize("method", ["bitsplit", "bitsplit_plus"])
def test_a_loader_that_shuffles_gives_one_network_whatever_was_drawn_before(method):
    network, images = trained_network()
    loader = DataLoader(images[256:], batch_size=32, shuffle=True)
    assert bitsplit.ptq.decided(Settings(), bitsplit.methods.named("bitsplit"), len(loader)).batch_norm.mode == "shift"
    found = []
    for _ in range(2):
        torch.rand(7)
        found.append(bitsplit.quantize(network, loader, 4, 4, method).state_dict())
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_an_image_that_is_left_over_is_left_out():
    """Behind a global average, batch-norm cannot normalise a batch of one."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(8, 8, 1),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).eval()
    images = torch.rand(65, 3, 8, 8)
    left, without = (bitsplit.quantize(network, batches, 4, 4) for batches in (images.split(32), images[:64].split(32)))
    assert all(torch.equal(value, without.state_dict()[key]) for key, value in left.state_dict().items())


def test_one_batch_smaller_than_the_loader_says_is_a_small_one():
    network, images = trained_network()
    loader = DataLoader(images[:10], batch_size=64)
    found, expected = (bitsplit.quantize(network, batches, 8, 8) for batches in (loader, [images[:10]]))
    assert found[3].input_quantizer.scale == expected[3].input_quantizer.scale


def test_of_small_batches_as_many_images_are_read():
    class Counting(list):
        read = 0

        def __iter__(self):
            for batch in super().__iter__():
                Counting.read += len(batch)
                yield batch

    network, images = trained_network()
    sizes = Calibration(batch_size=16, gram_batches=2, scale_batches=2, lockstep_batches=2)
    settings = Settings(Bits(4, 4), sizes, BatchNorm("none"))
    counts = []
    for batches in (images.split(16), images.split(4)):
        Counting.read = 0
        bitsplit.quantize(network, Counting(batches), settings=settings)
        counts.append(Counting.read)
    assert counts[0] <= counts[1] + 32 and counts[1] <= counts[0] + 32
