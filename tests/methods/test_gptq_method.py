"""The method `gptq`: weights of GPTQ as published, everything else as bit-split has it."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import cases, problem, published_gptq, relu_layer
from small_networks import BATCHES, NO_NORM, Residual, known_of, lively, quantized_layers

import bitsplit
from bitsplit import ptq
from bitsplit.grid import Grid
from bitsplit.layout import grouped_weight
from bitsplit.methods import named
from bitsplit.settings import Bits
from bitsplit.statistics.moments import LayerStats

METHOD, BITSPLIT = named("gptq"), named("bitsplit")


def published(gram, weight, bits):
    """Codes (G, M, N) at the alternation's scale, and the scale of least error for them."""
    grid = Grid(bits)
    scale = grid.scale_by_alternation(weight)
    arrays = zip(weight.numpy(), gram.numpy(), scale.numpy(), strict=True)
    codes = np.stack(
        [published_gptq(w.astype(float), a.astype(float), s.astype(float), grid.high) for w, a, s in arrays]
    )
    reached = codes @ gram.numpy()
    return codes, (reached * weight.numpy()).sum(axis=-1) / (reached * codes).sum(axis=-1)


@cases
@given(st.integers(0, 10**6), st.integers(3, 8), st.integers(2, 60), st.integers(1, 6), st.integers(1, 3))
def test_codes_are_those_of_gptq_as_published(seed, bits, inputs, outputs, groups):
    layers = [problem(*relu_layer(seed + group, inputs, outputs)[:2]) for group in range(groups)]
    gram, _, weight = (torch.stack(parts) for parts in zip(*layers, strict=True))
    expected, scale = published(gram, weight, bits)
    codes = METHOD.solve_weights(LayerStats.of_weight(gram, weight, 1), weight, bits)
    assert np.array_equal(codes.codes.numpy(), expected) and codes.offset is None
    np.testing.assert_allclose(codes.scale.numpy(), scale, rtol=1e-6)


@pytest.mark.parametrize("bits", [3, 4])
def test_a_network_has_the_codes_of_gptq_and_the_rest_of_bitsplit(bits):
    network, settings = lively(Residual()), dataclasses.replace(NO_NORM, bits=Bits(bits, 4))
    known = ptq.Known(statistics=known_of(network, METHOD, settings).statistics)
    ours, theirs = (
        bitsplit.quantize(network, BATCHES, method=method, settings=settings, known=known)
        for method in (METHOD, BITSPLIT)
    )
    differ = set()
    for name, layer in quantized_layers(ours).items():
        other = theirs.get_submodule(name)
        row = ours.report.set_index("name").loc[name]
        assert (layer.input_quantizer is None) == (name == "stem") == (other.input_quantizer is None)
        differ |= set() if torch.equal(layer.codes, other.codes) else {name}
        if name == "head":  # in weight space there is no feedback: the nearest codes
            assert torch.equal(layer.codes, other.codes) and torch.equal(layer.scale, other.scale)
            continue
        weight = grouped_weight(network.get_submodule(name))
        expected, _ = published(known.statistics.layers[name].stats.gram, weight, row["wbits"])
        agreement = np.mean(layer.codes.reshape(expected.shape).numpy() == expected)
        assert agreement > 0.995  # float32 against float64: a tie may fall otherwise
    assert {"main.3", "wide", "mix"} <= differ
    assert (METHOD.batch_norm, METHOD.edge_bits) == (BITSPLIT.batch_norm, BITSPLIT.edge_bits)


def test_activation_scales_are_those_of_bitsplit():
    network = lively(Residual())
    settings = dataclasses.replace(NO_NORM, bits=Bits(32, 4))
    ours, theirs = (
        bitsplit.quantize(network, BATCHES, method=method, settings=settings) for method in (METHOD, BITSPLIT)
    )
    for name, layer in quantized_layers(ours).items():
        assert torch.equal(layer.input_quantizer.scale, theirs.get_submodule(name).input_quantizer.scale)
