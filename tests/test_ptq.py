"""`bitsplit.quantize` on a small residual network with every kind of layer."""

import copy
import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from small_networks import (
    BATCHES,
    LAYERS,
    NO_NORM,
    SMALL,
    TEST,
    Residual,
    Signed,
    assert_finite,
    assert_same,
    every_method,
    has_hooks,
    known_of,
    lively,
    outputs,
    quantized_layers,
)

import bitsplit
from bitsplit import methods, ptq
from bitsplit.errors import InputError
from bitsplit.layers.quantized import QuantizedLayer
from bitsplit.layout import by_column, grouped_weight, ungrouped
from bitsplit.settings import Bits, Settings


class Interrupted(list):
    """Batches on a disk that fails half-way."""

    def __iter__(self):
        yield from self[:2]
        raise OSError("half-way")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "calibration, error",
    [(BATCHES, None), (Interrupted(BATCHES), OSError), ([*BATCHES[:2], BATCHES[2] / 0], InputError)],
    ids=["whole", "interrupted", "poisoned"],
)
def test_the_given_network_is_untouched(network, calibration, error, training):
    network.train(training)
    before, modules = copy.deepcopy(network.state_dict()), list(network.named_modules())
    with pytest.raises(error) if error else nullcontext():
        assert not has_hooks(bitsplit.quantize(network, calibration, settings=SMALL))
    after = network.state_dict()
    assert list(before) == list(after) and all(torch.equal(after[name], value) for name, value in before.items())
    assert list(network.named_modules()) == modules
    assert all(module.training == training for module in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert not has_hooks(network) and not hasattr(network, "report")


def test_32_bits_are_the_floating_point_network(network):
    quantized = bitsplit.quantize(network, BATCHES, wbits=32, abits=32)
    assert torch.equal(outputs(quantized), outputs(network))
    assert quantized is not network and not quantized_layers(quantized)
    assert sorted(quantized.report["name"]) == sorted(LAYERS)
    assert set(quantized.report["wbits"]) == set(quantized.report["abits"]) == {32}


@every_method
def test_one_seed_one_result(network, method):
    results = []
    for state in (1, 2):
        torch.manual_seed(state)  # neither read nor moved
        before = torch.get_rng_state()
        results.append(bitsplit.quantize(network, BATCHES, 4, 4, method, seed=3, settings=SMALL))
        assert torch.equal(torch.get_rng_state(), before)
    assert_same(*results)


def test_another_seed_draws_other_patches(network):
    one, other = (bitsplit.quantize(network, BATCHES, seed=seed, settings=SMALL) for seed in (0, 1))
    assert not torch.equal(one.wide.scale, other.wide.scale)


@pytest.mark.parametrize(
    "calibration",
    [
        lambda: (x for x in BATCHES),
        lambda: iter(BATCHES),
        lambda: tuple(BATCHES),
        lambda: [(x, torch.zeros(len(x))) for x in BATCHES],
        lambda: ([x, "label"] for x in BATCHES),
        lambda: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.cat(BATCHES)), batch_size=8),
    ],
    ids=["generator", "iterator", "tuple", "labelled", "labelled generator", "loader"],
)
def test_kinds_of_calibration(network, calibration):
    expected = bitsplit.quantize(network, BATCHES, settings=SMALL)
    assert_same(bitsplit.quantize(network, calibration(), settings=SMALL), expected)


# Bit-widths and seed


@pytest.mark.parametrize(
    "arguments, bits",
    [
        ({}, (3, 3)),
        ({"wbits": 6}, (6, 3)),
        ({"abits": 5}, (3, 5)),
        ({"wbits": 2, "abits": 8}, (2, 8)),
        ({"wbits": np.int64(4), "abits": np.int64(6)}, (4, 6)),
        ({"wbits": 32}, (32, 3)),
    ],
)
def test_bits_are_the_settings_where_no_argument_overrides_them(network, arguments, bits):
    settings = dataclasses.replace(NO_NORM, bits=Bits(3, 3))
    quantized = bitsplit.quantize(network, BATCHES, method="tflite", settings=settings, **arguments)
    rows = quantized.report.set_index("name").loc[LAYERS[1:-1]]
    assert set(zip(rows["wbits"], rows["abits"], strict=True)) == {bits}
    expected = bitsplit.quantize(network, BATCHES, *(int(b) for b in bits), method="tflite", settings=NO_NORM)
    assert_same(quantized, expected)


def test_bits_are_4_where_nobody_says(network):
    quantized = bitsplit.quantize(network, BATCHES, method="tflite")
    rows = quantized.report.set_index("name").loc[LAYERS[1:-1]]
    assert set(rows["wbits"]) == set(rows["abits"]) == {4}


def test_the_seed_is_the_settings_where_no_argument_overrides_it(network):
    settings = dataclasses.replace(SMALL, seed=3)
    three = bitsplit.quantize(network, BATCHES, seed=3, settings=SMALL)
    assert_same(bitsplit.quantize(network, BATCHES, settings=settings), three)
    zero = bitsplit.quantize(network, BATCHES, settings=SMALL)
    assert_same(bitsplit.quantize(network, BATCHES, seed=0, settings=settings), zero)
    assert not torch.equal(zero.wide.scale, three.wide.scale)


# Codes and quantizers


@pytest.mark.parametrize("wbits, abits", [(4, 32), (32, 4), (3, 3), (8, 8), (2, 5)])
@pytest.mark.parametrize("method", ["bitsplit", "tflite"])
def test_bits_by_role(network, wbits, abits, method):
    quantized = bitsplit.quantize(network, BATCHES, wbits, abits, method, settings=SMALL)
    rows = quantized.report.set_index("name")
    assert list(rows.index) == LAYERS
    for name, row in rows.iterrows():
        edge = name in ("stem", "head")
        assert row["wbits"] == (32 if wbits == 32 else 8 if edge else wbits)
        assert row["abits"] == (32 if abits == 32 or name == "stem" else 8 if edge else abits)
        assert row["shape"] == tuple(network.get_submodule(name).weight.shape) and row["note"] == ""
        layer = quantized.get_submodule(name)
        assert isinstance(layer, QuantizedLayer) == (row["wbits"] < 32 or row["abits"] < 32)
        if not isinstance(layer, QuantizedLayer):
            continue
        high = 2 ** (row["wbits"] - 1) - 1
        if row["wbits"] == 32:
            assert layer.codes is None and torch.equal(layer.weight, network.get_submodule(name).weight)
            assert row["relative_error"] == 0
        else:
            assert layer.codes.dtype == torch.int8 and layer.codes.abs().max() <= high
            assert layer.codes.shape == row["shape"] and layer.scale.shape == row["shape"][:1]
            assert torch.equal(layer.weight.flatten(1), layer.codes.flatten(1) * layer.scale.unsqueeze(-1))
            assert 0 < row["relative_error"] < 1
        if row["abits"] == 32:
            assert layer.input_quantizer is None and row["signed"] is None
        else:
            assert layer.input_quantizer.grid.bits == row["abits"] and not layer.input_quantizer.grid.signed
            assert not row["signed"] and 0 < row["input_error"] < 1
    assert_finite(quantized)
    if wbits < 32 and method == "bitsplit":  # the classifier is solved in weight space: every code is the nearest
        nearest = (network.head.weight / quantized.head.scale.unsqueeze(-1)).round().clamp(-127, 127)
        assert torch.equal(quantized.head.codes, nearest.to(torch.int8))


@pytest.mark.parametrize("seed", range(3))
def test_w8a8_is_close_and_errors_fall_with_bits(seed):
    network, errors = lively(Residual(seed)), []
    expected = outputs(network)
    for bits in (2, 3, 4, 5, 6, 8):
        quantized = bitsplit.quantize(network, BATCHES, bits, bits, settings=NO_NORM)
        errors.append(((outputs(quantized) - expected) ** 2).sum() / (expected**2).sum())
    assert errors == sorted(errors, reverse=True)
    assert -10 * errors[-1].log10() > 25


@every_method
def test_every_method_on_signed_inputs_is_finite_and_its_error_falls_with_bits(method):
    network, weights, inputs, errors = lively(Signed()), [], [], []
    x = torch.cat(BATCHES)
    expected = outputs(network, x)
    for bits in (3, 4, 6, 8):
        quantized = bitsplit.quantize(network, BATCHES, bits, bits, method, settings=NO_NORM)
        assert_finite(quantized)
        rows = quantized.report.set_index("name").loc[LAYERS[1:-1]]
        assert list(rows["signed"]) == [name == "mix" for name in rows.index]
        assert torch.as_tensor(quantized.mix.input_quantizer.grid.low).min() < 0
        weights.append(rows["relative_error"].to_numpy(dtype=float))
        inputs.append(rows["input_error"].to_numpy(dtype=float))
        errors.append((((outputs(quantized, x) - expected) ** 2).sum() / (expected**2).sum()).item())
    assert errors == sorted(errors, reverse=True) and errors[0] < 1 and errors[-1] < 0.01
    for parts in (weights, inputs):
        assert (np.diff(np.stack(parts), axis=0) < 0).mean() > 0.9  # of nearly every single layer
        assert (parts[-1] < 0.1 * parts[0]).all()


@every_method
@pytest.mark.parametrize("wbits, abits", [(4, 32), (32, 4)])
def test_one_side_stays_in_floating_point(network, method, wbits, abits):
    quantized = bitsplit.quantize(network, BATCHES, wbits, abits, method, settings=NO_NORM)
    for name, layer in quantized_layers(quantized).items():
        assert (layer.codes is None) == (wbits == 32) and (layer.input_quantizer is None) == (
            abits == 32 or name == "stem"
        )
        if wbits == 32:
            original = network.get_submodule(name)
            weight, quantizer = grouped_weight(original), layer.input_quantizer
            if quantizer is not None and quantizer.folded:  # all that is done to the weights
                weight = weight * by_column(quantizer.scale / quantizer.step, weight)
            assert torch.equal(layer.weight, ungrouped(weight, original))
    expected = outputs(network)
    assert 0 < ((outputs(quantized) - expected) ** 2).sum() < 0.3 * (expected**2).sum()


@every_method
def test_state_of_one_run_loads_into_another(network, method):
    one, other = (bitsplit.quantize(network, batches, 4, 4, method, settings=SMALL) for batches in (BATCHES, [TEST]))
    assert not torch.equal(outputs(one), outputs(other))
    other.load_state_dict(one.state_dict())
    assert torch.equal(outputs(one), outputs(other))
    assert torch.equal(outputs(copy.deepcopy(one)), outputs(one))
    double = copy.deepcopy(one).double()
    with torch.no_grad():
        assert double(TEST.double()).dtype == torch.float64
        assert ((double(TEST.double()) - outputs(one)) ** 2).mean() < 0.05 * outputs(one).square().mean()


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_bitsplit_preserves_outputs_better_than_tflite(bits, seed):
    network = lively(Residual(seed))
    settings = Settings(bits=Bits(bits, 32), calibration=SMALL.calibration, seed=seed)
    known = ptq.Known(statistics=known_of(network, methods.named("tflite"), settings).statistics)
    reports = {
        name: bitsplit.quantize(network, BATCHES, method=name, settings=settings, known=known).report.set_index("name")
        for name in ("bitsplit", "tflite")
    }
    errors = [reports[name]["relative_error"][LAYERS[:-1]].to_numpy(dtype=float) for name in ("bitsplit", "tflite")]
    assert (errors[0] <= errors[1] * (1 + 1e-6)).all()
    assert np.mean(errors[0] / errors[1]) < 0.8


def test_all_of_the_result_is_in_eval_mode(network):
    quantized = bitsplit.quantize(network.train(), BATCHES, settings=SMALL)
    assert [name for name, module in quantized.named_modules() if module.training] == []


# What it shows of itself


def test_it_prints_bits_scales_and_shapes(network):
    quantized = bitsplit.quantize(network, BATCHES, 4, 3, settings=SMALL, bits={"wide": (5, 6), "mix": (32, 7)})
    blocks = str(quantized).split("QuantizedLayer(\n")[1:]
    layers = quantized_layers(quantized)
    assert len(blocks) == len(layers) == len(LAYERS)
    for block, (name, layer) in zip(blocks, layers.items(), strict=True):
        row = quantized.report.set_index("name").loc[name]
        assert f"weight={row['shape']}" in block
        if row["wbits"] == 32:
            assert "in floating point" in block and "wbits" not in block
        else:
            least, greatest = layer.scale.min().item(), layer.scale.max().item()
            assert f"wbits={row['wbits']}, scales {least:.4g} to {greatest:.4g}" in block
        if row["abits"] == 32:
            assert "input_quantizer" not in block
        else:
            expected = f"bits={row['abits']}, signed=False, scale={layer.input_quantizer.scale.item():.4g}"
            assert f"(input_quantizer): InputQuantizer({expected})" in block
