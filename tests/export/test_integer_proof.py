"""`verify`: integer sums against int64, the rescale against the simulation, and layers that have no integer form."""

import copy
import itertools

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from convolutions import CONVOLUTIONS
from small_networks import (
    BATCHES,
    LAYERS,
    SMALL,
    TEST,
    Levels,
    Odd,
    Residual,
    every_method,
    images,
    lively,
    quantized_layers,
)
from torch import nn

import bitsplit
from bitsplit import InputError
from bitsplit.export.integers import signed_bits
from bitsplit.grid import Grid
from bitsplit.layers.inputs import CallQuantizers, InputQuantizer
from bitsplit.layers.quantized import QuantizedLayer
from bitsplit.layout import grouped_weight
from bitsplit.networks.classifiers import PaperNetwork

# Two products of single-precision numbers, and the sums of the simulation, which grow with their length.
ROUNDING, SUMS = 2**-22, 1e-5


def quantized(layer, grid=None, scale=0.07, wbits=4, offset=False, **options):
    """The layer with random codes, scales that differ from row to row, and a quantized input."""
    layer, random = copy.deepcopy(layer).float(), np.random.default_rng(1)
    wrapper = QuantizedLayer(layer)
    shape = grouped_weight(layer).shape
    high = 2 ** (wbits - 1) - 1
    codes = torch.tensor(random.integers(-high, high + 1, shape), dtype=torch.int8)
    scales = torch.tensor(random.uniform(0.01, 0.1, shape[:2]), dtype=torch.float32)
    wrapper.put(wbits, codes, scales, torch.tensor(random.uniform(-1, 1, shape[:2])).float() if offset else None)
    if grid is not None:
        wrapper.input_quantizer = InputQuantizer(grid, torch.as_tensor(scale, dtype=torch.float32), **options)
    return nn.Sequential(wrapper).eval()


def inputs(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape), dtype=torch.float32)


def checked(network, x):
    """The single row of a network of one layer, which must agree with the simulation."""
    table = bitsplit.verify(network, x)
    (row,) = table.to_dict("records")
    assert row["note"] == "" and row["deviation"] <= SUMS and row["rescale_deviation"] <= ROUNDING
    assert table.attrs["deviation"] == row["deviation"]
    return row


GRIDS = {"signed": Grid(4), "unsigned": Grid(8, signed=False), "zero point": Grid(4, signed=False, zero=5)}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_against_int64(name, grid):
    """The greatest sums, and so the bits of the accumulator, are those of torch's int64 convolution."""
    layer, pad, mode = CONVOLUTIONS[name]
    network, x = quantized(layer, grid), inputs(5, 4, 8, 8)
    row = checked(network, x)
    codes = np.clip(np.rint(x.numpy() / np.float32(0.07)), grid.low, grid.high)
    padded = F.pad(torch.tensor(codes), pad, mode=mode).to(torch.int64)
    geometry = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
    if name == "keywords":
        geometry = {"groups": 2}
    sums = F.conv2d(padded, network[0].codes.to(torch.int64), **geometry)
    assert row["accumulator_bits"] == next(
        bits for bits in itertools.count(1) if -(2 ** (bits - 1)) <= sums.min() and sums.max() < 2 ** (bits - 1)
    )
    ends = (codes == grid.high) | ((codes == grid.low) & (codes < 0))
    assert row["input_clip"] == pytest.approx(ends.mean())
    assert row["weight_clip"] == pytest.approx((network[0].codes.abs() == 7).float().mean().item())


@pytest.mark.parametrize("wbits", [2, 4, 8])
def test_a_mid_rise_grid_ends_one_code_further_down(wbits):
    network = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    batches = [torch.randn(32, 64, generator=torch.Generator().manual_seed(0))]
    qmodel = bitsplit.quantize(network, batches, wbits, 8, "bitsplit_plus_midrise")
    codes = qmodel[2].codes.to(torch.int16)
    ends = (codes == -(2 ** (wbits - 1))) | (codes == 2 ** (wbits - 1) - 1)
    table = bitsplit.verify(qmodel, batches[0]).set_index("name")
    assert table.loc["2", "weight_clip"] == pytest.approx(ends.double().mean().item())


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 2, "stride": 2, "groups": 2},
        {"kernel_size": (1, 3), "stride": (2, 3), "groups": 4, "output_padding": (1, 0), "bias": False},
    ],
)
def test_transposed_convolutions_have_a_scale_for_every_place_in_the_kernel(options, offset):
    layer = nn.ConvTranspose2d(4, 8, **options)
    checked(quantized(layer, Grid(4), offset=offset), inputs(3, 4, 5, 6))


@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 12), (2, 3, 4, 12)])
@pytest.mark.parametrize("offset", [True, False])
def test_linear_layers_over_any_number_of_dimensions(shape, offset):
    checked(quantized(nn.Linear(12, 9), Grid(6), offset=offset), inputs(*shape))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_offsets_of_rows_meet_the_sum_of_the_input(name):
    network = quantized(CONVOLUTIONS[name][0], Grid(5, signed=False, zero=3), offset=True)
    checked(network, inputs(3, 4, 8, 8))


def test_an_offset_that_is_wrong_is_found():
    network, x = quantized(nn.Conv2d(4, 6, 3), Grid(4), offset=True), inputs(2, 4, 8, 8)
    network[0].offset[2] += 0.01  # the dequantized weight does not follow
    assert bitsplit.verify(network, x).deviation.item() > 1e-4


def test_a_weight_that_its_codes_do_not_stand_for_is_found():
    network, x = quantized(nn.Linear(12, 9), Grid(4)), inputs(5, 12)
    network[0].codes[3, 4] += 1
    table = bitsplit.verify(network, x)
    assert table.deviation.item() > 1e-4 and table.attrs["deviation"] > 1e-4


def test_folded_scales_leave_one_step():
    network = quantized(nn.Conv2d(4, 6, 3), Grid(4), scale=[0.1, 0.2, 0.3, 0.4], positions=2, folded=True)
    checked(network, inputs(2, 4, 8, 8))


def test_scales_by_channel_have_an_integer_form_where_a_row_reads_one_channel():
    scale, x = [0.1, 0.2, 0.3, 0.4], inputs(2, 4, 8, 8)
    checked(quantized(nn.Conv2d(4, 8, 3, groups=4), Grid(4), scale=scale, positions=2), x)
    checked(quantized(nn.Conv2d(4, 8, 3, groups=2), Grid(4), scale=[0.1, 0.1, 0.3, 0.3], positions=2), x)
    table = bitsplit.verify(quantized(nn.Conv2d(4, 8, 3), Grid(4), scale=scale, positions=2), x)
    assert "scales of their own" in table.note.item() and np.isnan(table.deviation.item())
    assert table.input_clip.item() > 0 and table.attrs["deviation"] == 0


def test_worst_case_holds_whatever_the_input_is():
    """Brute force: the row's greatest sum, reached by an input of the grid's ends."""
    for grid in GRIDS.values():
        network = quantized(nn.Linear(6, 3), grid)
        row = checked(network, inputs(20, 6))
        weights = network[0].codes.numpy().astype(int)
        ends = np.array(list(itertools.product((grid.low, grid.high), repeat=6)))
        greatest = np.abs(ends @ weights.T).max()
        assert row["accumulator_bits"] <= row["worst_case_bits"]
        assert 2 ** (row["worst_case_bits"] - 1) > greatest


@pytest.mark.parametrize("low, high", [(0, 0), (-1, 0), (0, 1), (-128, 127), (-129, 0), (0, 128), (-5, 300)])
def test_signed_bits_by_brute_force(low, high):
    assert signed_bits(low, high) == next(
        bits for bits in itertools.count(1) if -(2 ** (bits - 1)) <= low and high <= 2 ** (bits - 1) - 1
    )


# Whole networks


@every_method
def test_every_method(method):
    qmodel = bitsplit.quantize(lively(Residual()), BATCHES, method=method, settings=SMALL, wbits=4, abits=4)
    state = {name: value.clone() for name, value in qmodel.state_dict().items()}
    table, layers = bitsplit.verify(qmodel, TEST).set_index("name"), quantized_layers(qmodel)
    assert set(table.index) == set(LAYERS)
    expected = {}
    for name in LAYERS:
        quantizer = layers[name].input_quantizer if name in layers else None
        by_channel = quantizer is not None and quantizer.step.dim() > 0 and name != "main.0"  # which is depthwise
        expected[name] = "scales of their own" if by_channel else "" if quantizer else "in floating point"
    assert all((text in table.note[name]) if text else table.note[name] == "" for name, text in expected.items())
    proved = table[table.note == ""]
    assert proved.deviation.max() <= SUMS and proved.rescale_deviation.max() <= ROUNDING
    assert (proved.accumulator_bits <= proved.worst_case_bits).all() and set(table.attrs) == {"deviation", "agreement"}
    report = qmodel.report.set_index("name")
    assert table.wbits.equals(report.wbits[table.index]) and "main.0" in proved.index
    assert all(torch.equal(value, state[name]) for name, value in qmodel.state_dict().items())


def test_every_call_has_its_own_step():
    qmodel = bitsplit.quantize(Levels(), images(8, 8), wbits=4, abits=4)
    assert isinstance(qmodel.one.input_quantizer, CallQuantizers)
    table = bitsplit.verify(qmodel, TEST).set_index("name").drop("stem")
    assert (table.note == "").all() and table.deviation.max() <= SUMS and table.rescale_deviation.max() <= ROUNDING
    with torch.no_grad():
        qmodel(TEST)  # the calls are counted from the first one still


def test_layers_without_integers_say_why():
    network = bitsplit.quantize(nn.Sequential(Odd()), [inputs(4, 4, 6, 6)], wbits=4, abits=4)
    notes = bitsplit.verify(network, inputs(2, 4, 6, 6)).set_index("name").note
    assert notes["0.good"] == "its input is in floating point"
    assert set(notes.drop("0.good")) == {"it is in floating point"}
    idle = quantized(nn.Conv2d(4, 6, 3), Grid(4))
    idle.forward = lambda x: x
    assert bitsplit.verify(idle, inputs(2, 4, 8, 8)).note.item() == "it is not called on these images"
    floating = bitsplit.quantize(lively(Residual()), BATCHES, wbits=32, abits=8)
    notes = bitsplit.verify(floating, TEST).set_index("name").note
    assert notes["wide"] == "its weights are in floating point"


class Halved(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x * 0.3, self.weight)


def test_a_forward_that_changes_its_rounded_input_is_named():
    table = bitsplit.verify(quantized(Halved(4, 6, 3), Grid(4)), inputs(2, 4, 8, 8))
    assert "its own forward changes" in table.note.item() and np.isnan(table.deviation.item())


def test_single_precision_is_all_that_differs():
    """In double precision the sums of the simulation agree too, but for scales that are single."""
    network, x = quantized(nn.Conv2d(4, 6, 3), Grid(8), wbits=8), inputs(4, 4, 9, 9)
    assert checked(network.double(), x.double())["deviation"] <= ROUNDING


def test_a_network_in_floating_point_is_refused():
    with pytest.raises(InputError, match="no layer of this network is quantized"):
        bitsplit.verify(Residual(), TEST)


def test_shipped_network():
    """The shipped ResNet-18 at W4A4."""
    loaded = PaperNetwork("resnet18").load("glyphs")
    x = inputs(8, 3, 64, 64)
    qmodel = bitsplit.quantize(loaded.module, [x], wbits=4, abits=4, method="tflite")
    table = bitsplit.verify(qmodel, inputs(8, 3, 64, 64, seed=1))
    proved = table[table.note == ""]
    assert len(proved) == 20 and list(table.name[table.note != ""]) == ["conv1"]
    assert proved.rescale_deviation.max() <= ROUNDING and proved.deviation.max() <= SUMS
    assert proved.worst_case_bits.max() <= 24 and table.attrs["agreement"] == 1
    assert isinstance(table, pandas.DataFrame) and table.abits.dtype.kind == "i"
