"""The report: one row a layer, its errors, and the reasons why weights are left in floating point."""

import pytest
import torch
from small_networks import BATCHES, SMALL, Odd
from torch import nn
from torch.nn.utils import parametrizations

import bitsplit
from bitsplit.settings import BatchNorm, Calibration, Settings


def test_relative_error_is_that_of_the_outputs(network):
    """With every patch taken, and only the weights of one layer in integers, the output itself shows the error."""
    settings = Settings(calibration=Calibration(patches=10**6), batch_norm=BatchNorm(mode="none"))
    quantized = bitsplit.quantize(network, BATCHES, 3, 32, settings=settings)
    x = torch.cat(BATCHES)
    with torch.no_grad():
        plain, coarse = network.stem(x), quantized.stem(x)
    expected = ((plain - coarse) ** 2).sum() / (plain**2).sum()
    assert quantized.report["relative_error"][0] == pytest.approx(expected.item(), rel=1e-2)


def test_layers_left_in_floating_point_are_rows_with_a_note():
    network, batches = Odd(), [torch.cat([x, x[:, :1]], dim=1) for x in BATCHES]
    rows = bitsplit.quantize(network, batches, 4, 4, settings=SMALL).report.set_index("name")
    assert set(rows.index) == {"good", "up", "borrowed", "computed", "unused", "spare"}
    for name, row in rows.iterrows():
        untouched = name != "good"
        assert row["note"].startswith("left in floating point: ") == untouched and bool(row["note"]) == untouched
        assert (row["wbits"] == 32) == untouched
        assert row["shape"] == tuple(network.get_submodule(name).weight.shape)


@pytest.mark.parametrize("count", [1, 2])
def test_parametrized_weights_are_left_with_a_note(count):
    torch.manual_seed(3)
    layers = [parametrizations.weight_norm(nn.Conv2d(4, 4, 1)) for _ in range(count)]
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), *layers, nn.ReLU(), nn.Conv2d(4, 2, 1))
    report = bitsplit.quantize(network, BATCHES, 4, 4, settings=SMALL).report
    assert len(report) == 2 + count and (report["note"] != "").sum() == count


def test_a_quantized_layer_that_is_also_used_otherwise_says_so():
    class Borrowing(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(6)
            self.stem, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.head(nn.functional.conv2d(x, self.stem.weight))

    rows = bitsplit.quantize(Borrowing(), BATCHES, 4, 4, settings=SMALL).report.set_index("name")
    assert rows["note"]["stem"].startswith("quantized, but also used outside") and rows["wbits"]["stem"] == 8
    assert rows["note"]["head"] == ""


def test_an_input_that_no_image_for_the_scales_reaches_is_left_with_a_note():
    class Bright(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(7)
            self.stem, self.late, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            y = self.stem(x).relu()
            return self.head(self.late(y).relu() if x.mean() > 10 else y)

    sizes = Calibration(batch_size=8, patches=800, gram_batches=4, scale_batches=2)
    settings = Settings(calibration=sizes, batch_norm=BatchNorm(mode="none"))
    batches = [*BATCHES[:2], *(x + 20 for x in BATCHES[2:])]
    quantized = bitsplit.quantize(Bright(), batches, 4, 4, settings=settings)
    rows = quantized.report.set_index("name")
    assert (rows["wbits"]["late"], rows["abits"]["late"]) == (4, 32)
    assert rows["note"]["late"] == "input left in floating point: not called on its images"
    assert quantized.late.input_quantizer is None and rows["abits"]["head"] == 8
