"""Files of networks of users' own: what they do with a network before and after, and that files stay the network's."""

import copy

import numpy as np
import pytest
import torch
from onnx_runs import session_outputs
from torch import nn

import bitsplit
from bitsplit.errors import InputError

IMAGES = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def network(gain: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    layers, inputs = [], 3
    for _ in range(2):
        norm = nn.BatchNorm2d(8)
        norm.weight.data = gain * (torch.rand(8) + 0.5)
        layers += [nn.Conv2d(inputs, 8, 3), norm, nn.ReLU()]
        inputs = 8
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


def decibels(found: torch.Tensor, expected: torch.Tensor) -> float:
    noise = (found - expected).double().square().sum()
    return (10 * torch.log10(expected.double().square().sum() / noise.clamp_min(1e-300))).item()


@pytest.mark.parametrize("wbits", [3, 8])
def test_mid_rise_codes_behind_negative_gains(tmp_path, wbits):
    quantized = bitsplit.quantize(network(-1.0), [IMAGES], wbits, 8, "bitsplit_plus_midrise")
    bitsplit.export_onnx(quantized, tmp_path / "n.onnx", IMAGES)
    assert decibels(session_outputs(tmp_path / "n.onnx", IMAGES), quantized(IMAGES).detach()) > 100


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 64, 4, 4), nn.LayerNorm(64)
        self.a, self.b, self.head = nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 5)

    def forward(self, x):
        x = self.norm(self.patch(x).flatten(2).mT)
        return self.head(self.b(self.a(x).relu()).relu().mean(dim=1))


@pytest.mark.parametrize("form", ["float", "integer"])
def test_no_matmul_has_large_signed_codes(tmp_path, form):
    """onnxruntime multiplies them by bytes and adds two products in 16 bits where a processor has no VNNI."""
    import onnx

    quantized = bitsplit.quantize(Tokens().eval(), [IMAGES], 8, 8)
    bitsplit.export_onnx(quantized, tmp_path / "n.onnx", IMAGES, form)
    assert decibels(session_outputs(tmp_path / "n.onnx", IMAGES), quantized(IMAGES).detach()) > 100
    graph = onnx.load(tmp_path / "n.onnx").graph
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("MatMul", "MatMulInteger"):
            maker, name = node, node.input[1]
            while name in makers and makers[name].op_type in ("Transpose", "DequantizeLinear"):
                maker, name = makers[name], makers[name].input[0]
            codes = constants[name]
            assert codes.dtype != np.int8 or np.abs(codes.astype(int)).max() <= 63, maker


def test_a_compiled_network_is_saved_as_what_it_was_compiled_from(tmp_path):
    model = network()
    quantized = bitsplit.quantize(model, [IMAGES], 4, 4)
    bitsplit.save(torch.compile(quantized, backend="eager"), tmp_path / "n.safetensors")
    assert torch.equal(bitsplit.load(tmp_path / "n.safetensors", model)(IMAGES), quantized(IMAGES))


class Sharing(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c.weight, self.head = self.b.weight, nn.Linear(4, 3)
        self.register_buffer("ones", torch.ones(1).expand(3))  # one value in three places

    def forward(self, x):
        return self.head(self.c(self.b(self.a(x).relu()).relu()).relu().mean((2, 3))) * self.ones


@pytest.mark.parametrize("copied", [False, True])
def test_a_network_that_was_moved_still_shares_its_weights(tmp_path, copied):
    model = Sharing()
    quantized = bitsplit.quantize(model, [IMAGES], 4, 4)
    moved = (copy.deepcopy(quantized) if copied else quantized).to(memory_format=torch.channels_last)
    assert moved.b.layer.weight is moved.c.layer.weight
    bitsplit.save(moved, tmp_path / "n.safetensors")
    assert torch.equal(bitsplit.load(tmp_path / "n.safetensors", model)(IMAGES), moved(IMAGES))


def test_an_export_changes_nothing(tmp_path):
    quantized = bitsplit.quantize(network(), [IMAGES], 4, 4)
    expected, mean = quantized(IMAGES).detach(), quantized[1].running_mean.clone()
    bitsplit.export_onnx(quantized.train(), tmp_path / "n.onnx", 3 * IMAGES + 1)
    assert torch.equal(quantized[1].running_mean, mean) and quantized.training
    assert decibels(session_outputs(tmp_path / "n.onnx", IMAGES), expected) > 100


def test_an_export_leaves_its_example_alone(tmp_path):
    class Normalising(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, x):
            return self.body(x.sub_(0.5).div_(0.2))

    example = IMAGES[:4].clone()
    bitsplit.export_onnx(bitsplit.quantize(Normalising(), [IMAGES], 4, 4), tmp_path / "n.onnx", example)
    assert torch.equal(example, IMAGES[:4])


def test_a_refused_export_leaves_the_calls_of_a_layer_counted(tmp_path):
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.h = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            z = self.h(5 * self.h(self.a(x).relu()).relu())
            assert x.shape[-1] % 4 == 0
            return self.head(self.h(z).mean((2, 3)))

    quantized = bitsplit.quantize(Pyramid(), [IMAGES], 4, 4)
    expected = quantized(IMAGES)
    with pytest.raises(InputError, match="does not run on the example"):
        bitsplit.export_onnx(quantized, tmp_path / "n.onnx", torch.randn(2, 3, 13, 13))
    assert torch.equal(quantized(IMAGES), expected)


def test_names_of_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = network()
    quantized = bitsplit.quantize(model, [IMAGES], 4, 4)
    bitsplit.save(quantized, "~/n.safetensors")
    assert (tmp_path / "n.safetensors").is_file()
    bitsplit.load("~/n.safetensors", model)
    with pytest.raises(InputError, match="is a folder"):
        bitsplit.export_onnx(quantized, tmp_path, IMAGES)


@pytest.mark.parametrize("name", ["summary", "report", "to_html"])
def test_a_name_that_the_result_needs_is_refused_at_once(name):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()
            self.add_module(name, nn.Linear(5, 2))

        def forward(self, x):
            return getattr(self, name)(self.body(x))

    with pytest.raises(InputError, match=f"a {name} of its own"):
        bitsplit.quantize(Named(), [IMAGES], 4, 4)


def test_the_pages_title_has_the_bits_that_were_asked_for(tmp_path):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 50)
    )
    bitsplit.quantize(model, [IMAGES], 3, 3).to_html(tmp_path / "page.html")
    assert "W3A3" in (tmp_path / "page.html").read_text(encoding="utf-8").partition("</title>")[0]
