"""Quantizers of what layers read: which layers share one, one for each tensor, and the integers that layers see."""

import torch
from small_networks import (
    BATCHES,
    LAYERS,
    NO_NORM,
    SMALL,
    TEST,
    Levels,
    every_method,
    outputs,
    quantized_layers,
)
from torch import nn

import bitsplit
from bitsplit.layers.inputs import InputQuantizer
from bitsplit.settings import Bits, Settings


def test_layers_see_integers(network):
    quantized = bitsplit.quantize(network, BATCHES, 4, 3, settings=SMALL)
    seen = {}
    for name, layer in quantized_layers(quantized).items():
        layer.layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    outputs(quantized)
    for name, layer in quantized_layers(quantized).items():
        if name == "stem":
            assert torch.equal(seen[name], TEST)
            continue
        codes = seen[name] / layer.input_quantizer.scale
        assert (codes - codes.round()).abs().max() < 1e-3
        assert codes.min() >= -1e-3 and codes.max() <= (255 if name == "head" else 7) + 1e-3
        assert len(codes.round().unique()) > 2


@every_method
def test_layers_that_read_one_tensor_share_their_quantizer(network, method):
    settings = Settings(bits=Bits(last_wbits=8, last_abits=8), calibration=SMALL.calibration)
    quantized = bitsplit.quantize(network, BATCHES, 4, 4, method, settings=settings)
    shared = quantized.main[0].input_quantizer
    assert isinstance(shared, InputQuantizer) and quantized.down.input_quantizer is shared
    others = [quantized.get_submodule(name).input_quantizer for name in LAYERS if name not in ("stem", "down")]
    assert len(set(others)) == len(others)
    both = {}  # what the two layers read is one and the same
    for name in ("main.0", "down"):
        layer = quantized.get_submodule(name).layer
        layer.register_forward_pre_hook(lambda _, args, name=name: both.update({name: args[0]}))
    outputs(quantized)
    assert torch.equal(both["main.0"], both["down"])


@every_method
def test_a_convolution_and_a_linear_layer_may_read_one_tensor(method):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Linear(12, 2)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.head(torch.cat([self.one(x).mean((2, 3)), self.two(x).mean((1, 2))], dim=1))

    torch.manual_seed(0)
    quantized = bitsplit.quantize(Both(), BATCHES, 4, 4, method, settings=NO_NORM)
    assert quantized.one.input_quantizer is not quantized.two.input_quantizer
    assert quantized(BATCHES[0]).isfinite().all()


def test_signed_inputs_get_signed_quantizers():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 2))
    quantized = bitsplit.quantize(network, BATCHES, 4, 4, settings=SMALL)
    assert quantized[1].input_quantizer.grid.signed and not quantized[4].input_quantizer.grid.signed
    assert list(quantized.report["signed"]) == [None, True, False]


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
    # ECAQ's layers have one bias for both levels, which goes by the mean of the coarse one.
    bound = 0.12 if method.name == "bitsplit_ecaq" else 0.1
    for level in (slice(0, 4 * 144), slice(4 * 144, None)):
        error = (given - expected)[:, level].square().sum() / expected[:, level].square().sum()
        assert error < bound
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
