"""`export_tflite`: the codes in the file, its outputs in LiteRT's interpreter, and networks that it cannot hold."""

import numpy as np
import pytest
import torch
from small_networks import Levels, Residual, images, lively
from torch import nn

import bitsplit
from bitsplit import InputError
from bitsplit.export.tflite_file import _zeros_and_scales
from bitsplit.layers.inputs import CallQuantizers


class Small(nn.Module):
    """Convolutions with and without batch-norm, a strided shortcut and a classifier."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wide, self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 1, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        return self.head((self.wide(x) + self.down(x)).relu().mean((2, 3)))


def quantized(network, **options):
    return bitsplit.quantize(network, images(16, 16), **{"wbits": 4, "abits": 4, "method": "tflite"} | options)


def interpreter(path):
    module = pytest.importorskip("ai_edge_litert.interpreter", reason="needs the extra `tflite`")
    made = module.Interpreter(str(path))
    made.allocate_tensors()
    return made


def run(made, x):
    made.set_tensor(made.get_input_details()[0]["index"], x.numpy())
    made.invoke()
    return torch.tensor(made.get_tensor(made.get_output_details()[0]["index"]))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("litert_torch", reason="needs the extra `tflite`")
    qmodel, path = quantized(lively(Small()), wbits=3), tmp_path_factory.mktemp("tflite") / "small.tflite"
    bitsplit.export_tflite(qmodel, path, images(4)[0])
    return qmodel, path


def test_the_file_holds_the_codes(written):
    """Of the layers without batch-norm; the converter moves the step of an input into scales where it can."""
    qmodel, path = written
    made = interpreter(path)
    found = [t for t in made.get_tensor_details() if len(t["quantization_parameters"]["scales"])]
    tensors = {tuple(t["shape"]): t for t in found if t["dtype"] is np.int8}
    assert len(tensors) == 4
    for name, shape in (("wide", (8, 3, 3, 8)), ("down", (8, 1, 1, 8)), ("head", (5, 8))):
        layer, tensor = getattr(qmodel, name), tensors[shape]
        codes = (layer.codes.permute(0, 2, 3, 1) if layer.codes.dim() == 4 else layer.codes).flatten(1).numpy()
        divisor = np.gcd.reduce(codes, axis=1)  # of codes that are all even, say, the file has the halves
        assert np.array_equal(made.get_tensor(tensor["index"]).reshape(codes.shape), codes // divisor[:, None])
        steps = tensor["quantization_parameters"]["scales"] / (layer.scale.numpy() * divisor)
        assert np.ptp(steps) < 1e-6 * steps[0]


def test_the_interpreter_computes_what_the_simulation_does(written):
    qmodel, path = written
    x = images(4, seed=9)[0]
    with torch.no_grad():
        torch.testing.assert_close(run(interpreter(path), x), qmodel(x), rtol=1e-4, atol=1e-4)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_grouped_depthwise_and_dilated_convolutions(tmp_path):
    pytest.importorskip("litert_torch", reason="needs the extra `tflite`")
    qmodel, x = quantized(lively(Residual())), images(4, seed=9)[0]
    bitsplit.export_tflite(qmodel, tmp_path / "x.tflite", x)
    made = interpreter(tmp_path / "x.tflite")
    integers = [t for t in made.get_tensor_details() if len(t["quantization_parameters"]["scales"])]
    assert sum(t["dtype"] is np.int8 for t in integers) == 8
    with torch.no_grad():
        torch.testing.assert_close(run(made, x), qmodel(x), rtol=1e-4, atol=1e-4)


def test_every_call_of_a_layer_keeps_its_own_rounding(tmp_path):
    pytest.importorskip("litert_torch", reason="needs the extra `tflite`")
    qmodel, x = quantized(Levels(), wbits=4), images(2, seed=9)[0]
    assert isinstance(qmodel.one.input_quantizer, CallQuantizers)
    bitsplit.export_tflite(qmodel, tmp_path / "levels.tflite", x)
    with torch.no_grad():
        expected = qmodel(x)
    difference = (run(interpreter(tmp_path / "levels.tflite"), x) - expected).abs()
    assert difference.median() < 1e-4 * expected.abs().max()


def test_scales_are_found_whatever_the_codes():
    random, scale = np.random.default_rng(0), np.float32([0.3, 0.07, 1e-4, 2, 5])
    codes = random.integers(-127, 128, (5, 12))
    codes[1], codes[2], codes[3] = [0, 2, 5, 7] * 3, [0, 4, -6, 2] * 3, 0
    for dimension in (0, 1):
        weight = (codes * scale[:, None]).astype(np.float32)
        weight = weight if dimension == 0 else weight.T
        zeros, found = _zeros_and_scales(weight, dimension, block_size=0)
        expected = scale * np.gcd.reduce(codes, axis=1)
        expected[3] = 1  # nothing to scale
        assert np.allclose(found.ravel(), expected, rtol=3e-7) and not zeros.any()
        assert found.shape == zeros.shape == ((5, 1) if dimension == 0 else (1, 5))


def test_what_the_file_cannot_hold_is_refused_in_one_line(tmp_path):
    pytest.importorskip("litert_torch", reason="needs the extra `tflite`")
    shifted = quantized(lively(Small()))
    shifted.wide.put(4, shifted.wide.codes, shifted.wide.scale, torch.ones(8))
    transposed = quantized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(4, 2, 1)))
    refused = {
        "wide: TF-Lite has no offsets": shifted,
        "1: TF-Lite has no scales by place": transposed,
    }
    for reason, qmodel in refused.items():
        with pytest.raises(InputError, match=reason) as caught:
            bitsplit.export_tflite(qmodel, tmp_path / "refused.tflite", images(1)[0])
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be written"):
        bitsplit.export_tflite(quantized(lively(Small())), "/proc/none/x.tflite", images(1)[0])
    assert not list(tmp_path.iterdir())


class Branching(Small):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else -super().forward(x)


def test_a_network_that_cannot_be_traced_leaves_no_file(tmp_path):
    pytest.importorskip("litert_torch", reason="needs the extra `tflite`")
    with pytest.raises(InputError, match="LiteRT cannot convert this network") as caught:
        bitsplit.export_tflite(quantized(lively(Branching())), tmp_path / "x.tflite", images(1)[0])
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
