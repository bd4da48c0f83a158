"""Who gets which bits: roles by the order of calls, layers that are named, and patterns over names."""

import dataclasses

import pytest
import torch
from small_networks import (
    BATCHES,
    LAYERS,
    NO_NORM,
    QUICK,
    SMALL,
    TEST,
    Block,
    Residual,
    images,
    lively,
    outputs,
    quantized_layers,
)
from torch import nn

import bitsplit
from bitsplit import methods, ptq
from bitsplit.errors import InputError
from bitsplit.layers.quantized import QuantizedLayer
from bitsplit.plan import Plan
from bitsplit.settings import Bits, Layers, Settings
from bitsplit.statistics.batches import CalibrationBatches

ROLES = dict.fromkeys(LAYERS, (4, 3)) | {"stem": (8, 32), "head": (8, 8)}  # of wbits=4, abits=3


def bits_of(quantized):
    """What the report says; the layers themselves must say the same."""
    rows = quantized.report
    bits = dict(zip(rows["name"], zip(rows["wbits"], rows["abits"], strict=True), strict=True))
    for name, (wbits, abits) in bits.items():
        layer = quantized.get_submodule(name)
        assert isinstance(layer, QuantizedLayer) == ((wbits, abits) != (32, 32))
        if wbits < 32:
            assert layer.wbits == wbits and layer.codes.abs().max() <= 2 ** (wbits - 1) - 1
        if abits < 32:
            assert layer.input_quantizer.bits == abits
        elif isinstance(layer, QuantizedLayer):
            assert layer.input_quantizer is None
    return bits


def planned(network, method="bitsplit", batches=BATCHES, **settings):
    network = ptq.evaluation_copy(network)
    settings = dataclasses.replace(SMALL, bits=Bits(4, 3), **settings)
    return Plan.of(network, CalibrationBatches(batches, network, 8), methods.named(method), settings)


def quantized_with(network, layers=None, bits=None):
    settings = dataclasses.replace(SMALL, layers=layers or Layers())
    return bitsplit.quantize(network, BATCHES, wbits=4, abits=3, bits=bits, settings=settings)


# Roles


def test_roles_by_the_order_of_the_calls(network):
    plan = planned(network)
    assert {name: layer.role for name, layer in plan.layers.items()} == dict.fromkeys(LAYERS, "other") | {
        "stem": "first",
        "head": "last",
    }
    assert list(plan.layers) == list(plan.reads) == LAYERS
    assert plan.same_reads("main.0") == plan.same_reads("down") != plan.same_reads("main.3")
    (only,) = planned(nn.Conv2d(3, 4, 3)).layers.values()
    assert (only.role, only.wbits, only.abits) == ("only", 8, 32)


def test_all_that_is_auto_is_decided_as_the_method_prescribes(network):
    bits = planned(network, "lapq").settings.bits
    assert (bits.first_wbits, bits.last_wbits, bits.last_abits) == (32, 32, 32)
    assert planned(network, "lapq").settings.batch_norm.mode == "none"
    bits = planned(network).settings.bits
    assert (bits.first_wbits, bits.last_wbits, bits.last_abits) == (8, 8, 8)
    assert planned(network).settings.batch_norm.mode == "shift"  # four batches are few
    assert planned(network, batches=BATCHES * 25).settings.batch_norm.mode == "reestimate"


class Occasional(nn.Module):
    """A convolution behind the classifier's that only some batches reach, and one that no batch does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.never, self.late = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.stem, self.body, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.head(self.body(self.stem(x).relu()).relu())
        return self.late(y.relu()) if x.mean() > 10 else y


@pytest.mark.parametrize("names", [(), ("late",)])
def test_a_layer_first_met_in_a_later_batch_is_not_the_last(names):
    """Roles stay by the order of the first forward, unless the settings name the layers that predict."""
    ordinary = images(8, 8)
    bright = [x + 20 for x in images(8, 8, seed=1)]
    settings = dataclasses.replace(NO_NORM, layers=Layers(predictions=names))
    quantized = bitsplit.quantize(Occasional(), ordinary + bright, 4, 3, settings=settings)
    predicts = {"head": (8, 8), "late": (4, 3)} if not names else {"head": (4, 3), "late": (8, 8)}
    assert bits_of(quantized) == {"stem": (8, 32), "body": (4, 3), "never": (32, 32)} | predicts
    assert list(quantized.report["name"]) == ["stem", "body", "head", "late", "never"]
    assert outputs(quantized, bright[0]).isfinite().all()
    # Where the first forward reaches it, it is the last.
    quantized = bitsplit.quantize(Occasional(), bright + ordinary, 4, 3, settings=NO_NORM)
    expected = {"stem": (8, 32), "body": (4, 3), "never": (32, 32), "head": (4, 3), "late": (8, 8)}
    assert bits_of(quantized) == expected


# Layers that are named


def test_predictions_have_the_bits_of_the_last_layer(network):
    bits = bits_of(quantized_with(network, Layers(predictions=("mix", "main.6"))))
    expected = dict.fromkeys(LAYERS, (4, 3)) | {"stem": (8, 32), "mix": (8, 8), "main.6": (8, 8)}
    assert bits == expected


def test_layers_left_alone_by_the_name_of_what_holds_them(network):
    bits = bits_of(quantized_with(network, Layers(floating_point=("main", "down"))))
    assert bits == ROLES | dict.fromkeys(["main.0", "main.3", "main.6", "down"], (32, 32))


@pytest.mark.parametrize("layers", [Layers(predictions=("mai",)), Layers(floating_point=("stem", "tail"))])
def test_a_name_of_no_layer(network, layers):
    with pytest.raises(InputError, match="no layer is named '(mai|tail)'"):
        quantized_with(network, layers)


# Patterns


def test_bits_by_pattern_come_before_those_of_roles(network):
    bits = bits_of(quantized_with(network, bits={"main.*": (8, 8), "head": (3, 5)}))
    assert bits == ROLES | {"main.0": (8, 8), "main.3": (8, 8), "main.6": (8, 8), "head": (3, 5)}


def test_the_last_pattern_that_matches_counts(network):
    bits = bits_of(quantized_with(network, bits={"*": (5, 6), "main.?": (8, 7), "main.3": (2, 4), "m*0": (6, 2)}))
    expected = dict.fromkeys(LAYERS, (5, 6)) | {"main.6": (8, 7), "main.3": (2, 4), "main.0": (6, 2)}
    assert bits == expected | {"stem": (5, 32)}  # the image stays as it is
    swapped = bits_of(quantized_with(network, bits={"main.3": (2, 4), "main.?": (8, 7)}))
    assert swapped["main.3"] == (8, 7)


def test_the_image_stays_as_it_is_for_every_layer_that_reads_it(network):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.one(x) + self.two(x)

    bits = {"*": (5, 6)}
    assert bits_of(bitsplit.quantize(Branches(), BATCHES, bits=bits, settings=NO_NORM)) == {
        "one": (5, 32),
        "two": (5, 32),
    }
    assert bits_of(quantized_with(network, bits={"stem": (4, 4)})) == ROLES | {"stem": (4, 32)}


def test_a_layer_left_alone_by_its_pattern(network):
    quantized = quantized_with(network, bits={"wide": (32, 32), "mix": (32, 6), "down": (6, 32)})
    assert bits_of(quantized) == ROLES | {"wide": (32, 32), "mix": (32, 6), "down": (6, 32)}
    for name in ("wide", "mix"):
        assert torch.equal(quantized.get_submodule(name).weight, network.get_submodule(name).weight)


def test_layers_left_in_floating_point_stay_so_under_any_pattern(network):
    layers = Layers(floating_point=("main",), bits={"*": (5, 5)})
    bits = bits_of(quantized_with(network, layers))
    assert {name for name, pair in bits.items() if pair == (32, 32)} == {"main.0", "main.3", "main.6"}


def test_one_layer_alone_in_a_floating_point_network(network):
    quantized = bitsplit.quantize(network, BATCHES, 32, 32, bits={"wide": (3, 4)}, settings=NO_NORM)
    assert bits_of(quantized) == dict.fromkeys(LAYERS, (32, 32)) | {"wide": (3, 4)}
    assert list(quantized_layers(quantized)) == ["wide"]
    layer, read = quantized.wide, []
    layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    assert (outputs(quantized) - outputs(network)).abs().max() > 0
    x = layer.input_quantizer(read[0])
    torch.testing.assert_close(outputs(quantized), outputs_with_wide(network, x, layer))


def outputs_with_wide(network, x, layer):
    """The floating-point network from the output of its layer `wide` on, as the quantized layer makes it."""
    with torch.no_grad():
        y = nn.functional.conv2d(x, layer.weight, layer.bias, padding=2, dilation=2)
        return network.head(network.mix(y.relu()).relu().flatten(1))


@pytest.mark.parametrize("pattern", ["layer4.*", "Main.*", "main", ""])
@pytest.mark.parametrize("wbits", [4, 32])
def test_a_pattern_of_no_layer_lists_the_names(network, pattern, wbits):
    with pytest.raises(InputError) as error:
        bitsplit.quantize(network, BATCHES, wbits, wbits, bits={"*": (4, 4), pattern: (8, 8)}, settings=SMALL)
    message = str(error.value)
    assert repr(pattern) in message and all(name in message for name in LAYERS) and "\n" not in message


@pytest.mark.parametrize("pair", [(9, 4), (4, 1), (4, True), (4, "8"), (4,), 4, None, (4, 4, 4)])
def test_wrong_bits_of_a_pattern(network, pair):
    with pytest.raises(InputError, match="wide") as error:
        bitsplit.quantize(network, BATCHES, bits={"wide": pair}, settings=SMALL)
    assert "\n" not in str(error.value)


def test_bits_of_the_settings_give_way_to_the_argument(network):
    settings = dataclasses.replace(SMALL, layers=Layers(bits={"wide": (5, 5)}))
    quantized = bitsplit.quantize(network, BATCHES, 4, 3, settings=settings)
    assert bits_of(quantized) == ROLES | {"wide": (5, 5)}
    quantized = bitsplit.quantize(network, BATCHES, 4, 3, bits={"mix": (6, 6)}, settings=settings)
    assert bits_of(quantized) == ROLES | {"mix": (6, 6)}


def test_everything_in_floating_point_is_the_network_as_it_was():
    network = lively(Residual())
    settings = Settings(Bits(32, 32), layers=Layers(bits={"wide": (32, 32)}))
    assert torch.equal(outputs(bitsplit.quantize(network, [TEST], settings=settings)), outputs(network))


# Conventions


@pytest.mark.parametrize(
    ("convention", "stem", "first", "second", "head"),
    [
        ("bitsplit", (8, 32), (4, 3), (4, 3), (8, 8)),
        ("brecq", (8, 32), (4, 8), (4, 3), (8, 8)),
        ("qdrop", (8, 32), (4, 3), (4, 3), (8, 8)),
        ("all_low", (4, 32), (4, 3), (4, 3), (4, 3)),
    ],
)
@pytest.mark.parametrize("method", [methods.named("bitsplit"), methods.named("bitsplit_plus"), QUICK["lapq"]])
def test_a_convention_sets_the_bits_of_the_edges(method, convention, stem, first, second, head):
    settings = dataclasses.replace(SMALL, convention=convention)
    quantized = bitsplit.quantize(Block(), BATCHES, wbits=4, abits=3, method=method, settings=settings)
    if convention == "bitsplit" and method.name == "lapq":
        stem, head = (32, 32), (32, 32)  # its own prescription
    assert bits_of(quantized) == {"stem": stem, "first": first, "second": second, "head": head}


@pytest.mark.parametrize("method", ["bitsplit", "bitsplit_plus"])
def test_no_layer_rounds_the_image_nor_the_tensor_that_a_caller_gives(method):
    """Where the second of two stems reads channels of the image, and shortcuts are rounded in place."""

    class Depth(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.color, self.depth = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 8, 3)
            self.middle, self.last = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

        def forward(self, x):
            x = self.color(x[:, :3]) + self.depth(x[:, 3:])
            return self.last(self.middle(x.relu()).relu().mean((2, 3)))

    images = torch.rand(16, 4, 12, 12)
    settings = dataclasses.replace(SMALL, convention="qdrop")
    quantized = bitsplit.quantize(Depth(), [images], 4, 4, method, settings=settings)
    assert quantized.report.set_index("name")["abits"].to_dict() == {"color": 32, "depth": 32, "middle": 4, "last": 8}
    given = images.clone()
    quantized(given)
    assert torch.equal(given, images)


@pytest.mark.parametrize("convention", ["bitsplit", "brecq", "qdrop", "all_low"])
@pytest.mark.parametrize("method", ["bitsplit", "bitsplit_plus", "bitsplit_per_channel"])
def test_an_addition_reads_integers_under_some_conventions(method, convention):
    settings = dataclasses.replace(SMALL, convention=convention)
    quantized = bitsplit.quantize(Block(), BATCHES, wbits=4, abits=3, method=method, settings=settings)
    batch = images(4, seed=9)[0]
    given = batch.clone()

    def added(layer, x):
        quantizer = layer.input_quantizer
        codes = quantizer.grid.quantize(x, quantizer.scale)
        shortcut = codes * quantizer.scale if convention in ("brecq", "qdrop") else x
        return (shortcut + layer.layer(codes * quantizer.step)).relu()

    with torch.no_grad():
        x = quantized.stem.layer(batch).relu()
        x = added(quantized.second, added(quantized.first, x))
        expected = quantized.head(x.mean((2, 3)))
        assert torch.allclose(quantized(batch), expected, atol=1e-6)
    assert torch.equal(batch, given)


def test_an_unknown_convention_is_named():
    with pytest.raises(InputError, match="convention must be one of bitsplit, brecq, qdrop, all_low; got 'lsq'"):
        Settings(convention="lsq")
