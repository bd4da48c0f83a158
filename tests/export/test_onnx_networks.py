"""The shipped ResNet-18 and torchvision's, as ONNX files in onnxruntime as it comes."""

import functools

import numpy as np
import pytest
import torch

import bitsplit
from bitsplit.data.glyphs import Glyphs
from bitsplit.networks.classifiers import PaperNetwork
from bitsplit.vision import torchvision

pytest.importorskip("onnx", reason="needs the extra `onnx`")
pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
from onnx_runs import exported, initializer_types, session_outputs  # noqa: E402

IMAGES = 1000


@functools.cache
def glyphs():
    network, data = PaperNetwork("resnet18").load("glyphs"), Glyphs(IMAGES)
    images = torch.cat([images for images, _ in data.validation(network.preprocessing, 250)])
    return network.module, data.calibration(network.preprocessing, 32, 8, 0), images


@pytest.mark.slow
@pytest.mark.parametrize("form", ["float", "integer"])
@pytest.mark.parametrize("bits", [4, 3])
def test_the_shipped_network_predicts_as_simulated(tmp_path, bits, form):
    module, calibration, images = glyphs()
    qmodel = bitsplit.quantize(module, calibration, bits, bits, "tflite")
    path = exported(qmodel, images[:1], tmp_path / "model.onnx", form)
    with torch.no_grad():
        expected = torch.cat([qmodel(part) for part in images.split(250)])
    result = torch.cat([session_outputs(path, part) for part in images.split(250)])
    assert (result.argmax(1) == expected.argmax(1)).double().mean() >= 0.999
    # An image has some hundred thousand codes, and in a few images one of them lies on a rounding tie.
    deviation = np.abs((result - expected).numpy())
    assert np.median(deviation) < 1e-4 and np.quantile(deviation, 0.99) < 1e-3


@pytest.mark.slow
def test_four_bits_take_less_than_014_of_the_file(tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    qmodel = bitsplit.quantize(model, [torch.randn(4, 3, 64, 64)], 4, 4, "tflite")
    path = exported(qmodel, torch.randn(1, 3, 64, 64), tmp_path / "model.onnx")
    assert initializer_types(path)["INT4"] == 19
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    assert path.stat().st_size < 0.14 * size
