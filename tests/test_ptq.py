"""`bitsplit.quantize` on a small residual network with every kind of layer."""

import copy
import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from networks import (
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
    lively,
    outputs,
    quantized_layers,
)
from test_capture import has_hooks
from torch import nn

import bitsplit
from bitsplit import methods, ptq
from bitsplit.config import BatchNorm, Bits, Calibration, Settings
from bitsplit.errors import InputError
from bitsplit.layers import InputQuantizer, QuantizedLayer


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


@every_method
def test_weights_shared_between_activation_bits_give_the_same_result(network, method):
    settings = [dataclasses.replace(SMALL, bits=Bits(4, abits)) for abits in (32, 8, 4)]
    statistics = ptq.statistics_of(network, BATCHES, settings[0])
    stage = ptq.quantize_weights(network, BATCHES, method, settings[0], statistics)
    for asked in settings:
        alone = ptq.quantize(network, BATCHES, method, asked)
        shared = ptq.quantize(network, BATCHES, method, asked, statistics, stage)
        assert shared.report.equals(alone.report)
        for batch in BATCHES:
            assert torch.equal(shared(batch), alone(batch))


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


# Bits, codes and quantizers


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
        assert quantized.mix.input_quantizer.grid.signed
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
            assert torch.equal(layer.weight, network.get_submodule(name).weight)
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
    statistics = ptq.statistics_of(network, BATCHES, settings)
    reports = {
        name: ptq.quantize(network, BATCHES, methods.named(name), settings, statistics).report.set_index("name")
        for name in ("bitsplit", "tflite")
    }
    errors = [reports[name]["relative_error"][LAYERS[:-1]].to_numpy(dtype=float) for name in ("bitsplit", "tflite")]
    assert (errors[0] <= errors[1] * (1 + 1e-6)).all()
    assert np.mean(errors[0] / errors[1]) < 0.8


def test_relative_error_is_that_of_the_outputs(network):
    """With every patch taken, and only the weights of one layer in integers, the output itself shows the error."""
    settings = Settings(calibration=Calibration(patches=10**6), batch_norm=BatchNorm(mode="none"))
    quantized = bitsplit.quantize(network, BATCHES, 3, 32, settings=settings)
    x = torch.cat(BATCHES)
    with torch.no_grad():
        plain, coarse = network.stem(x), quantized.stem(x)
    expected = ((plain - coarse) ** 2).sum() / (plain**2).sum()
    assert quantized.report["relative_error"][0] == pytest.approx(expected.item(), rel=1e-2)


@pytest.mark.parametrize("mode", ["reestimate", "shift", "none", "auto"])
def test_batch_norm_modes(network, mode):
    settings = Settings(calibration=SMALL.calibration, batch_norm=BatchNorm(mode=mode))
    quantized = bitsplit.quantize(network, BATCHES, 3, 3, settings=settings)
    moved = not torch.equal(quantized.main[4].running_mean, network.main[4].running_mean)
    assert moved == (mode != "none") and quantized.main[4].momentum == 0.1


def test_all_of_the_result_is_in_eval_mode(network):
    quantized = bitsplit.quantize(network.train(), BATCHES, settings=SMALL)
    assert [name for name, module in quantized.named_modules() if module.training] == []
