"""LAPQ on a whole network: the loss that the search ends at, and the layers that it leaves in floating point."""

import pytest
import torch
import torch.nn.functional as F
from small_networks import BATCHES, NO_NORM, Residual, lively, outputs, quantized_layers
from torch import nn

import bitsplit
from bitsplit.errors import InputError
from bitsplit.methods.lapq import LAPQ
from bitsplit.settings import Bits, Settings

QUICK = LAPQ(images=20, evaluations=40)


class Recorded(LAPQ):
    """Notes every loss that the search sees, and the function behind them."""

    def refine(self, weights, inputs, loss):
        seen = []
        object.__setattr__(self, "seen", seen)
        object.__setattr__(self, "tensors", (len(weights), len(inputs)))
        super().refine(weights, inputs, lambda images: seen.append(loss(images)) or seen[-1])


@pytest.mark.parametrize("wbits, abits", [(3, 3), (4, 32), (32, 3)])
def test_the_network_has_the_lowest_loss_seen(wbits, abits):
    network, method = lively(Residual()), Recorded(images=20, evaluations=40)
    quantized = bitsplit.quantize(network, BATCHES, wbits, abits, method, settings=NO_NORM)
    x = torch.cat(BATCHES)[:20]
    targets = outputs(network, x).softmax(dim=1)
    loss = F.cross_entropy(outputs(quantized, x), targets).item()
    assert loss == pytest.approx(min(method.seen), rel=1e-5)
    assert min(method.seen) < min(method.seen[:6])  # the search found something
    assert method.tensors == (0 if wbits == 32 else 6, 0 if abits == 32 else 5)  # two layers share an input


@pytest.mark.parametrize("wbits, abits", [(3, 4), (8, 32), (32, 8)])
def test_first_and_last_layer_stay_in_floating_point(wbits, abits):
    network = lively(Residual())
    quantized = bitsplit.quantize(network, BATCHES, wbits, abits, QUICK, settings=NO_NORM)
    rows = quantized.report.set_index("name")
    for name in ("stem", "head"):
        assert (rows["wbits"][name], rows["abits"][name]) == (32, 32)
        assert torch.equal(quantized.get_submodule(name).weight, network.get_submodule(name).weight)
    assert "stem" not in quantized_layers(quantized) and "head" not in quantized_layers(quantized)
    assert set(rows["wbits"][1:-1]) == {wbits} and set(rows["abits"][1:-1]) == {abits}
    for name, layer in quantized_layers(quantized).items():
        if wbits < 32:
            assert layer.offset is not None and layer.codes.abs().max() <= 2 ** (wbits - 1) - 1
        if abits < 32:
            assert layer.input_quantizer.scale.shape == (), name


def test_first_and_last_layer_on_demand():
    bits = Bits(4, 4, first_wbits=8, last_wbits=6, last_abits=5)
    settings = Settings(bits=bits, calibration=NO_NORM.calibration)
    rows = bitsplit.quantize(lively(Residual()), BATCHES, 4, 4, QUICK, settings=settings).report.set_index("name")
    assert (rows["wbits"]["stem"], rows["abits"]["stem"]) == (8, 32)
    assert (rows["wbits"]["head"], rows["abits"]["head"]) == (6, 5)


@pytest.mark.parametrize("wbits, abits", [(4, 4), (4, 32), (32, 4)])
def test_a_network_of_a_first_and_a_last_layer_is_left_alone(wbits, abits):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 5))
    quantized = bitsplit.quantize(network, BATCHES, wbits, abits, QUICK, settings=NO_NORM)
    assert torch.equal(outputs(quantized), outputs(network))


class Boxes(nn.Module):
    """Returns what is no logits."""

    def __init__(self, wrap):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.body(x))


@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: {"boxes": y}, lambda y: [y.flatten(1)]])
def test_a_network_without_logits_is_an_input_error(wrap):
    with pytest.raises(InputError, match="logits") as error:
        bitsplit.quantize(Boxes(wrap), BATCHES, 4, 4, QUICK, settings=NO_NORM)
    assert "\n" not in str(error.value)
    assert bitsplit.quantize(Boxes(wrap), BATCHES, 4, 4, "tflite", settings=NO_NORM) is not None
