"""What a method prescribes beyond weights and scales: on which statistics its classifier is solved."""

import dataclasses
from typing import ClassVar

import pytest
import torch
from small_networks import BATCHES, LAYERS, NO_NORM, Residual, every_method, known_of, lively, quantized_layers

import bitsplit
from bitsplit import methods, ptq
from bitsplit.layout import grouped_weight
from bitsplit.methods.base import Method
from bitsplit.methods.bitsplit import BitSplit
from bitsplit.settings import Bits, Layers
from bitsplit.solver.bitsplit import solve
from bitsplit.statistics.moments import LayerStats


class OnGram(BitSplit):
    """Bit-split whose classifier is solved like any other layer."""

    classifier_in_weight_space: ClassVar[bool] = False


@every_method
def test_codes_are_bytes_of_the_weights_shape(method):
    weight = torch.randn(2, 5, 9)
    codes = method.solve_weights(LayerStats.weight_space(weight), weight, 4).codes
    assert (codes.dtype, codes.shape) == (torch.int8, weight.shape)


METHODS = {"weight space": BitSplit(), "Gram matrix": OnGram()}


def solved(network, known, name, bits, in_weight_space):
    weight = grouped_weight(network.get_submodule(name))
    stats = known.statistics.layers[name].stats
    gram = torch.eye(weight.shape[-1]).expand(len(weight), -1, -1) if in_weight_space else stats.gram
    return solve(gram, weight @ gram, bits, weight).codes.view_as(network.get_submodule(name).weight)


@pytest.mark.parametrize("predictions", [(), ("mix", "head")])
def test_a_linear_classifier_is_solved_where_the_method_prescribes(predictions):
    network = lively(Residual())
    settings = dataclasses.replace(NO_NORM, bits=Bits(3, 32, last_wbits=3), layers=Layers(predictions))
    known = ptq.Known(statistics=known_of(network, BitSplit(), settings).statistics)
    codes = {}
    for name, method in METHODS.items():
        quantized = bitsplit.quantize(network, BATCHES, method=method, settings=settings, known=known)
        codes[name] = {layer: module.codes for layer, module in quantized_layers(quantized).items()}
        assert torch.equal(codes[name]["head"], solved(network, known, "head", 3, name == "weight space"))
        # A convolution is solved on what it reads, the one that predicts too.
        assert torch.equal(codes[name]["mix"], solved(network, known, "mix", 3, False))
    for layer in LAYERS:
        assert torch.equal(*(codes[name][layer] for name in METHODS)) == (layer != "head")
    assert not torch.equal(codes["Gram matrix"]["mix"], solved(network, known, "mix", 3, True))


def test_weight_space_is_bitsplits_convention():
    assert not Method.classifier_in_weight_space
    names = "bitsplit", "bitsplit_per_channel", "bitsplit_lattice", "gptq"
    assert all(methods.named(name).classifier_in_weight_space for name in names)
