"""What onnxruntime's default options do to quantized graphs, each on a layer made for it."""

import numpy as np
import pytest
import torch
from torch import nn

from bitsplit.grid import Grid
from bitsplit.layers.inputs import InputQuantizer
from bitsplit.layers.quantized import QuantizedLayer

pytest.importorskip("onnx", reason="needs the extra `onnx`")
pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
from onnx_runs import exported, initializer_types, nodes, session_outputs  # noqa: E402

X = torch.linspace(-4, 4, 4 * 6 * 8 * 8).view(4, 6, 8, 8)[torch.randperm(4, generator=torch.Generator().manual_seed(0))]


def layer_of(wbits, grid, step, bias=True):
    """A convolution with random codes, one at each end of their grid, that reads `grid`."""
    random, high = np.random.default_rng(0), 2 ** (wbits - 1) - 1
    torch.manual_seed(0)
    layer = QuantizedLayer(nn.Conv2d(6, 10, 3, bias=bias))
    codes = torch.tensor(random.integers(-high, high + 1, (1, 10, 54)))
    codes[0, 0, :2] = torch.tensor([-high, high])
    layer.put(wbits, codes, torch.tensor(random.uniform(0.01, 0.03, (1, 10)), dtype=torch.float32))
    layer.input_quantizer = InputQuantizer(grid, torch.tensor(step))
    return layer


def ones_layer(bits):
    """A 1×1 convolution behind `layer_of`, on a signed grid."""
    layer = QuantizedLayer(nn.Conv2d(10, 3, 1))
    layer.input_quantizer = InputQuantizer(Grid(bits), torch.tensor(0.05))
    layer.put(bits, torch.ones(1, 3, 10), torch.ones(1, 3))
    return layer


def deviations(network, path, form="float"):
    """Of the file from the simulation, as shares of its largest value."""
    network = network.eval()
    with torch.no_grad():
        expected = network(X)
    return (session_outputs(exported(network, X, path, form), X) - expected).abs() / expected.abs().max()


@pytest.mark.parametrize("form", ["float", "integer"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_a_signed_grid_behind_relu_keeps_the_relu_and_its_ends(tmp_path, bits, form):
    """QuantizeLinear to 4 bits swallows a ReLU before it; and 8 signed bits have a code −128 that the grid has not."""
    network = nn.Sequential(nn.Hardtanh(-1, 9), layer_of(bits, Grid(bits), 0.011), nn.ReLU(), ones_layer(bits))
    assert deviations(network, tmp_path / "model.onnx", form).max() < 1e-6


def test_clipping_is_on_the_codes(tmp_path):
    """A Clip before QuantizeLinear to 4 bits does not load; ReLU6 before a grid that ends below 6 must."""
    network = nn.Sequential(nn.ReLU6(), layer_of(4, Grid(4, signed=False), 0.1))
    assert deviations(network, tmp_path / "model.onnx").max() < 1e-6
    counts = nodes(tmp_path / "model.onnx")
    assert counts["QuantizeLinear"] == 1 and counts["Clip"] == 2


def test_biases_are_added_behind_and_not_rounded(tmp_path):
    """Beside sums of thousands, a bias in a convolution would be rounded to multiples of the scales' product."""
    layer = layer_of(8, Grid(8, signed=False), 3.0)
    nn.init.constant_(layer.layer.bias, 0.01)
    layer.scale.fill_(10.0)
    layer._dequantize()
    network = nn.Sequential(nn.ReLU(), layer)
    path = exported(network.eval(), X, tmp_path / "model.onnx")
    inside = session_outputs(path, 0 * X)
    assert torch.allclose(inside, torch.full_like(inside, 0.01))


def test_a_bias_of_nothing_leaves_no_node(tmp_path):
    network = nn.Sequential(layer_of(4, Grid(4), 0.3, bias=False))
    assert deviations(network, tmp_path / "model.onnx").max() < 1e-6
    assert nodes(tmp_path / "model.onnx")["Add"] == 0


@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_gains_of_batch_norm_may_be_nothing_or_negative(tmp_path, factor):
    norm = nn.BatchNorm2d(10)
    norm.weight.data[::2] *= factor
    norm.running_mean.copy_(torch.linspace(-1, 1, 10))
    norm.bias.data = torch.linspace(2, 3, 10)
    network = nn.Sequential(layer_of(4, Grid(4), 0.3), norm)
    for form in ("float", "integer"):
        assert deviations(network, tmp_path / "model.onnx", form).max() < 1e-6
    assert initializer_types(tmp_path / "model.onnx")["INT4"] == 1


def test_floating_point_weights_are_not_rounded_behind_quantized_inputs(tmp_path):
    """onnxruntime makes 8-bit integers of a constant weight beside DequantizeLinear."""
    layer = QuantizedLayer(nn.Conv2d(6, 10, 3))
    layer.input_quantizer = InputQuantizer(Grid(8), torch.tensor(0.03))
    assert deviations(nn.Sequential(layer), tmp_path / "model.onnx").max() < 1e-6


def test_wide_linear_layers_of_four_bits_are_exact(tmp_path):
    """onnxruntime has a kernel for 4-bit matrices that rounds what it multiplies them with."""
    layer = QuantizedLayer(nn.Linear(8, 256))
    second = QuantizedLayer(nn.Linear(256, 32))
    for each in (layer, second):
        rows, columns = each.layer.weight.shape
        codes = torch.tensor(np.random.default_rng(0).integers(-7, 8, (1, rows, columns)))
        each.put(4, codes, torch.full((1, rows), 0.02))
    second.input_quantizer = InputQuantizer(Grid(8), torch.tensor(0.01))
    assert deviations(nn.Sequential(layer, nn.GELU(), second), tmp_path / "model.onnx").max() < 2e-3
