"""`bitsplit.quantize` on degenerate and unusual networks, and its errors."""

import pytest
import torch
from networks import (
    BATCHES,
    EVERY,
    LAYERS,
    SMALL,
    TEST,
    Residual,
    assert_finite,
    assert_same,
    every_method,
    lively,
    outputs,
    quantized_layers,
)
from test_stats import Odd
from torch import nn
from torch.nn.utils import parametrizations

import bitsplit
from bitsplit.config import Bits, Settings
from bitsplit.errors import InputError
from bitsplit.layers import QuantizedLayer


@every_method
@pytest.mark.parametrize("bits", [2, 4])
def test_zero_channels_and_dead_inputs(network, method, bits):
    with torch.no_grad():
        for name in LAYERS:
            network.get_submodule(name).weight[0] = 0
        network.stem_norm.weight[1], network.stem_norm.bias[1] = 0, -1  # its ReLU is shut
        network.mix.weight.zero_()
        network.mix.bias.fill_(-1)  # the classifier reads nothing but zeros
    settings = Settings(bits=Bits(first_wbits=8, last_wbits=8, last_abits=8), calibration=SMALL.calibration)
    quantized = bitsplit.quantize(network, BATCHES, bits, bits, method, settings=settings)
    assert_finite(quantized)
    assert all(not quantized.get_submodule(name).codes[0].any() for name in LAYERS)
    assert all(not quantized.get_submodule(name).weight[0].any() for name in LAYERS)
    assert not quantized.mix.codes.any() and not quantized.mix.weight.any()


@every_method
@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
def test_constant_pictures(network, method, value):
    quantized = bitsplit.quantize(network, [torch.full((4, 3, 12, 12), value)] * 2, 4, 4, method, settings=SMALL)
    assert_finite(quantized)
    assert_finite(quantized, torch.full((4, 3, 12, 12), value))


class Tokens(nn.Module):
    """Linear layers on three-dimensional input, one of them used twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.patch, self.token = nn.Conv2d(3, 8, 3, stride=3), nn.Linear(8, 8)
        self.tied, self.head = nn.Linear(8, 8, bias=False), nn.Linear(8, 2)
        self.tied.weight = self.token.weight

    def forward(self, x):
        x = self.patch(x).relu().flatten(2).transpose(1, 2)
        x = self.tied(self.token(self.token(x).relu()).relu()).relu()
        return self.head(x.mean(dim=1))


class Levels(nn.Module):
    """Two layers read both levels of a pyramid, of which the coarse one is a hundred times larger."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.stem, self.one, self.two, self.head = (nn.Conv2d(i, 4, 1) for i in (3, 4, 4, 8))

    def forward(self, x):
        x = self.stem(x)
        levels = x, 100 * x[..., ::2, ::2]
        return torch.cat([self.head(torch.cat([self.one(x), self.two(x)], 1)).flatten(1) for x in levels], 1)


@every_method
def test_each_level_of_a_pyramid_has_a_scale_of_its_own(method):
    network = Levels()
    quantized = bitsplit.quantize(network, BATCHES, 8, 4, method, settings=SMALL)
    one, two = quantized.one.input_quantizer, quantized.two.input_quantizer
    assert one is not two and len(one) == 2 and list(one) == list(two)
    fine, coarse = (quantizer.scale.mean() for quantizer in one)
    assert 20 < coarse / fine < 500
    expected, given = outputs(network), outputs(quantized)
    assert torch.equal(outputs(quantized), given)  # each forward begins with the first level
    for level in (slice(0, 4 * 144), slice(4 * 144, None)):
        error = (given - expected)[:, level].square().sum() / expected[:, level].square().sum()
        assert error < 0.1
    quantized.one(torch.ones(1, 4, 1, 1))  # a call out of turn, forgotten by eval
    assert torch.equal(outputs(quantized.eval()), given)


def test_a_layer_called_more_or_less_often_has_one_scale():
    class Sometimes(Levels):
        def forward(self, x):
            x = self.stem(x)
            return self.head(torch.cat([self.one(x), self.two(self.two(x)) if x.sum() > 0 else self.two(x)], 1))

    batches = [x + shift for x, shift in zip(BATCHES, (-5, 5, -5, 5), strict=False)]
    quantized = bitsplit.quantize(Sometimes(), batches, 8, 4, settings=SMALL)
    assert quantized.two.input_quantizer.scale.shape == ()


@every_method
def test_linear_layers_on_sequences_and_shared_weights(method):
    network = Tokens()
    quantized = bitsplit.quantize(network, BATCHES, 8, 8, method, settings=SMALL)
    assert list(quantized.report["name"]) == ["patch", "token", "head"]
    assert isinstance(quantized.token, QuantizedLayer) and isinstance(quantized.tied, QuantizedLayer)
    assert torch.equal(quantized.token.codes, quantized.tied.codes)
    assert quantized.token.weight is quantized.tied.weight
    assert quantized.token.input_quantizer is quantized.tied.input_quantizer
    expected = outputs(network)
    assert ((outputs(quantized) - expected) ** 2).sum() < 1e-2 * (expected**2).sum()


@pytest.mark.parametrize("method", [m for m in EVERY if m.edge_bits == 8], ids=lambda method: method.name)
@pytest.mark.parametrize("layer, x", [(nn.Conv2d(3, 4, 3), TEST), (nn.Linear(12, 3), TEST[:, 0])])
def test_a_lone_layer(layer, x, method):
    quantized = bitsplit.quantize(layer, [x], 4, 4, method, settings=SMALL)
    assert len(quantized.report) == 1 and len(quantized_layers(quantized)) == 1
    expected = outputs(layer, x)
    assert ((outputs(quantized, x) - expected) ** 2).sum() < 1e-3 * (expected**2).sum()


def test_layers_left_in_floating_point_are_rows_with_a_note():
    network, batches = Odd(), [torch.cat([x, x[:, :1]], dim=1) for x in BATCHES]
    rows = bitsplit.quantize(network, batches, 4, 4, settings=SMALL).report.set_index("name")
    assert set(rows.index) == {"good", "up", "borrowed", "computed", "unused", "spare"}
    for name, row in rows.iterrows():
        left = name != "good"
        assert row["note"].startswith("left in floating point: ") == left and bool(row["note"]) == left
        assert (row["wbits"] == 32) == left
        assert row["shape"] == tuple(network.get_submodule(name).weight.shape)


@pytest.mark.parametrize("count", [1, 2])
def test_parametrized_weights_are_left_with_a_note(count):
    torch.manual_seed(3)
    layers = [parametrizations.weight_norm(nn.Conv2d(4, 4, 1)) for _ in range(count)]
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), *layers, nn.ReLU(), nn.Conv2d(4, 2, 1))
    report = bitsplit.quantize(network, BATCHES, 4, 4, settings=SMALL).report
    assert len(report) == 2 + count and (report["note"] != "").sum() == count


@every_method
def test_runs_in_inference_mode(network, method):
    expected = bitsplit.quantize(network, BATCHES, method=method, settings=SMALL)
    with torch.inference_mode():
        quantized = bitsplit.quantize(network, BATCHES, method=method, settings=SMALL)
    assert_same(quantized, expected)


# Wrong input


def poisoned():
    network = lively(Residual())
    with torch.no_grad():
        network.wide.weight[0, 0, 0, 0] = float("nan")
    return network


@pytest.mark.parametrize(
    "arguments, says",
    [({"wbits": bits}, "wbits") for bits in (1, 9, 0, 16, "4", True, 4.0, None)]
    + [({"abits": bits}, "abits") for bits in (1, 9, -8, "8", False)]
    + [({"method": "nope"}, "nope"), ({"seed": -1}, "seed"), ({"seed": 0.5}, "seed")]
    + [({"calibration": []}, "empty"), ({"calibration": iter([])}, "empty")]
    + [({"calibration": [], "wbits": 32, "abits": 32}, "empty")]
    + [({"calibration": ["picture"]}, "str"), ({"calibration": [{"image": TEST}]}, "dict")]
    + [({"calibration": [TEST * float("nan")]}, "stem"), ({"calibration": [TEST, TEST / 0]}, "stem")]
    + [({"model": poisoned()}, "mix"), ({"model": nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())}, "no convolution")],
)
def test_input_errors(network, arguments, says):
    with pytest.raises(InputError, match=says) as error:
        bitsplit.quantize(**{"model": network, "calibration": BATCHES, "settings": SMALL} | arguments)
    assert "\n" not in str(error.value)
