"""`bitsplit.quantize` on degenerate and unusual networks, and its errors."""

import numpy as np
import pytest
import torch
from small_networks import (
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
from torch import nn

import bitsplit
from bitsplit.errors import InputError
from bitsplit.layers.quantized import QuantizedLayer
from bitsplit.settings import Bits, Settings


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
    assert all(not quantized.get_submodule(name).weight[0].any() for name in LAYERS)
    assert not quantized.mix.weight.any()
    # A grid without a code for zero has a scale of zero instead.
    part = "scale" if getattr(method, "midrise", False) else "codes"
    assert all(not getattr(quantized.get_submodule(name), part)[0].any() for name in LAYERS)
    assert not getattr(quantized.mix, part).any()


@every_method
@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
def test_constant_images(network, method, value):
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


@every_method
def test_runs_in_inference_mode(network, method):
    expected = bitsplit.quantize(network, BATCHES, method=method, settings=SMALL)
    with torch.inference_mode():
        quantized = bitsplit.quantize(network, BATCHES, method=method, settings=SMALL)
    assert_same(quantized, expected)
    assert not any(tensor.is_inference() for tensor in quantized.state_dict().values())


def test_what_the_caller_has_set_torch_to_changes_nothing(network, tmp_path):
    """The precision of matrix products, and the device of new tensors; and both stay as they were."""
    expected = bitsplit.quantize(network, BATCHES, method="bitsplit_plus", settings=SMALL)
    bitsplit.save(expected, tmp_path / "network")
    torch.set_float32_matmul_precision("medium")
    try:
        assert_same(bitsplit.quantize(network, BATCHES, method="bitsplit_plus", settings=SMALL), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    if hasattr(torch.backends, "fp32_precision"):  # after which torch refuses to read the older setting
        matmul = torch.backends.cuda.matmul
        before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
        try:
            assert_same(bitsplit.quantize(network, BATCHES, method="bitsplit_plus", settings=SMALL), expected)
            assert matmul.fp32_precision == "tf32"
        finally:
            matmul.fp32_precision = before
    with torch.device("meta"):
        assert_same(bitsplit.load(tmp_path / "network", network), expected)
    with torch.inference_mode():
        loaded = bitsplit.load(tmp_path / "network", network)
    assert not any(tensor.is_inference() for tensor in loaded.state_dict().values())


# Wrong input


def poisoned():
    network = lively(Residual())
    with torch.no_grad():
        network.wide.weight[0, 0, 0, 0] = float("nan")
    return network


@pytest.mark.parametrize(
    "arguments, says",
    [({"wbits": bits}, "wbits") for bits in (1, 9, 0, 16, "4", True, 4.0)]
    + [({"abits": bits}, "abits") for bits in (1, 9, -8, "8", False, np.int64(9), np.float64(4))]
    + [({"method": "nope"}, "nope"), ({"seed": -1}, "seed"), ({"seed": 0.5}, "seed")]
    + [({"calibration": []}, "empty"), ({"calibration": iter([])}, "empty")]
    + [({"calibration": [], "wbits": 32, "abits": 32}, "empty")]
    + [({"calibration": ["image"]}, "str"), ({"calibration": [{"image": TEST}]}, "dict")]
    + [({"calibration": [TEST * float("nan")]}, "stem"), ({"calibration": [TEST, TEST / 0]}, "stem")]
    + [({"model": poisoned()}, "mix"), ({"model": nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())}, "no convolution")],
)
def test_input_errors(network, arguments, says):
    with pytest.raises(InputError, match=says) as error:
        bitsplit.quantize(**{"model": network, "calibration": BATCHES, "settings": SMALL} | arguments)
    assert "\n" not in str(error.value)
