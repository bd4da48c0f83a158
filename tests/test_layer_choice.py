"""`config.Layers`: which layers make predictions, and which are left alone."""

import dataclasses

import pytest
from networks import BATCHES, LAYERS, SMALL

import bitsplit
from bitsplit.config import Layers
from bitsplit.errors import InputError


def report(network, layers):
    settings = dataclasses.replace(SMALL, layers=layers)
    rows = bitsplit.quantize(network, BATCHES, wbits=4, abits=3, settings=settings).report
    return dict(zip(rows["name"], zip(rows["wbits"], rows["abits"], strict=True), strict=True))


def test_predictions_have_the_bits_of_the_last_layer(network):
    bits = report(network, Layers(predictions=("mix", "main.6")))
    expected = dict.fromkeys(LAYERS, (4, 3)) | {"stem": (8, 32), "mix": (8, 8), "main.6": (8, 8)}
    assert bits == expected


def test_layers_left_alone_by_the_name_of_what_holds_them(network):
    bits = report(network, Layers(floating_point=("main", "down")))
    expected = dict.fromkeys(LAYERS, (4, 3)) | {"stem": (8, 32), "head": (8, 8)}
    assert bits == expected | dict.fromkeys(["main.0", "main.3", "main.6", "down"], (32, 32))


@pytest.mark.parametrize("layers", [Layers(predictions=("mai",)), Layers(floating_point=("stem", "tail"))])
def test_a_name_of_no_layer(network, layers):
    with pytest.raises(InputError, match="no layer is named '(mai|tail)'"):
        report(network, layers)
