"""Weights as rows: groups, and transposed convolutions against the 1×1 convolutions that they are."""

import pytest
import torch
from small_networks import BATCHES, NO_NORM, every_method, outputs
from torch import nn
from torch.nn import functional as F

import bitsplit
from bitsplit.layout import grouped, grouped_weight, ungrouped


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Conv2d(4, 6, 3, groups=2), (2, 3, 18)),
        (nn.Conv2d(4, 4, 3, groups=4), (4, 1, 9)),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (2, 12, 2)),
        (nn.Linear(5, 3), (1, 3, 5)),
    ],
)
def test_grouped_weight(layer, shape):
    weight = grouped_weight(layer)
    assert weight.shape == shape and weight.is_contiguous() and not weight.requires_grad
    assert torch.equal(ungrouped(weight, layer), layer.weight)
    if isinstance(layer, nn.Conv2d):  # the last output channel is the last row of the last group
        assert torch.equal(weight[-1, -1], layer.weight[-1].flatten())


class Enlarging(nn.Module):
    """A 2×2, stride-2 transposed convolution, or the 1×1 convolution and rearrangement that it equals."""

    def __init__(self, transposed: bool, groups: int):
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=groups)
        self.mix, self.head = nn.Conv2d(6, 4, 3), nn.Linear(4, 3)
        self.transposed = transposed
        if not transposed:
            twin = nn.Conv2d(8, 24, 1, groups=groups)
            twin.weight.data = grouped_weight(self.up).reshape(24, -1, 1, 1)
            twin.bias.data = self.up.bias.data.repeat_interleave(4)
            self.up = twin

    def forward(self, x):
        x = self.up(self.norm(self.stem(x)).relu())
        x = x if self.transposed else F.pixel_shuffle(x, 2)
        return self.head(self.mix(x.relu()).relu().mean(dim=(2, 3)))


@every_method
@pytest.mark.parametrize("groups", [1, 2])
def test_is_quantized_as_the_convolution_it_equals(method, groups):
    one, other = (Enlarging(transposed, groups).eval() for transposed in (True, False))
    torch.testing.assert_close(outputs(one), outputs(other))
    expected = outputs(one)
    one, other = (bitsplit.quantize(network, BATCHES, 4, 8, method, settings=NO_NORM) for network in (one, other))
    # The convolution has a bias, and so a mean, for each place of the other's kernel.
    if method.order == "sequential":
        assert all((outputs(network) - expected).square().mean() < 0.02 * expected.var() for network in (one, other))
        return
    assert torch.equal(grouped(one.up.codes, one.up.layer), grouped(other.up.codes, other.up.layer))
    assert torch.equal(one.up.scale, other.up.scale) and one.up.scale.shape == (24,)
    torch.testing.assert_close(outputs(one), outputs(other), rtol=1e-3, atol=1e-3)
    assert list(one.report["wbits"]) == list(other.report["wbits"])


def test_put_takes_rows_and_keeps_the_weights_own_order():
    quantized = bitsplit.quantize(Enlarging(True, 2), BATCHES, 4, 32, settings=NO_NORM)
    layer = quantized.up.layer
    assert quantized.up.codes.shape == layer.weight.shape == (8, 3, 2, 2)
    rows = grouped(quantized.up.codes, layer).float() * quantized.up.scale.reshape(2, 12, 1)
    assert torch.equal(layer.weight, ungrouped(rows, layer)) and torch.equal(grouped_weight(layer), rows)


@pytest.mark.parametrize("options", [{"kernel_size": 3, "stride": 2}, {"kernel_size": 2, "stride": 2, "padding": 1}])
def test_overlapping_or_cut_outputs_are_left_with_a_note(options):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 4, **options), nn.Conv2d(4, 2, 1))
    report = bitsplit.quantize(network, BATCHES, 4, 4, settings=NO_NORM).report.set_index("name")
    assert "overlap" in report.loc["2", "note"] and report.loc["2", "wbits"] == 32
    assert (report.drop("2")["note"] == "").all()
