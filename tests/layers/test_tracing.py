"""Tracers, exporters and compilers of torch see what an input quantizer does, and give the same numbers."""

import functools
import shutil
from dataclasses import replace

import pytest
import torch
from small_networks import BATCHES, SMALL, TEST, Levels, Residual, lively, outputs
from torch import nn
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

import bitsplit
from bitsplit.grid import Grid
from bitsplit.layers.inputs import InputQuantizer

OTHER = TEST[3:9].flip(0) * 1.5  # another number of images, with other values, than any trace was made of


def scripted(network):
    return torch.jit.trace(network, TEST)


def symbolic(network):
    return torch.fx.symbolic_trace(network)


def exported(network):
    return torch.export.export(network, (TEST,), dynamic_shapes=({0: Dim("batch")},)).module()


def compiled(network):
    torch.compiler.reset()
    return torch.compile(network, backend="aot_eager")


@functools.cache
def quantized(kind):
    """With each kind of input quantizer that takes a way of its own."""
    model = Levels().eval() if kind == "calls" else lively(Residual())
    method = {"channels": "aciq_mix", "folded": "bitsplit_ecaq"}.get(kind, "tflite")
    settings = replace(SMALL, convention="brecq") if kind == "in place" else SMALL
    return bitsplit.quantize(model, BATCHES, 4, 4, method, settings=settings)


# The slow ones see the dispatcher's operators, whatever kind they are of: the two that differ are enough.
TRACES = [
    (tracer, kind) for tracer in (scripted, symbolic) for kind in ("tensors", "channels", "folded", "in place", "calls")
]
TRACES += [(tracer, kind) for tracer in (exported, compiled) for kind in ("in place", "calls")]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("tracer", "kind"), TRACES, ids=lambda part: part if isinstance(part, str) else part.__name__)
def test_a_trace_gives_what_the_network_gives(tracer, kind):
    qmodel = quantized(kind)
    with torch.no_grad():
        traced = tracer(qmodel)
        assert torch.equal(traced(TEST), outputs(qmodel))
        assert torch.equal(traced(OTHER), outputs(qmodel, OTHER))


def test_functional_transforms_see_the_operator():
    quantizer = InputQuantizer(Grid(4), torch.tensor(0.3))
    traced = make_fx(quantizer)(TEST)
    assert torch.equal(traced(2 * TEST), quantizer(2 * TEST))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compiler_writes_code_around_the_operator():
    channels = TEST.shape[1]
    few = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())  # it takes seconds a layer
    qmodel = bitsplit.quantize(few.eval(), BATCHES, 4, 4, "tflite", settings=SMALL)
    assert any(isinstance(module, InputQuantizer) for module in qmodel.modules())
    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(qmodel)(TEST), outputs(qmodel))


@pytest.mark.parametrize("grid", [Grid(4), Grid(3, signed=False), Grid(8, signed=False, zero=20)])
def test_the_operator_is_what_torchs_own_operations_give(grid):
    x = torch.linspace(-3, 3, 2 * 3 * 40).view(2, 3, 8, 5)
    for values in (x, x.contiguous(memory_format=torch.channels_last), x[:, :, ::2], x[:0]):
        result = torch.ops.bitsplit.fake_quantize(values, torch.tensor(0.21), grid.low, grid.high)
        assert torch.equal(result, InputQuantizer(grid, torch.tensor(0.21)).rounded(values))
        assert result.stride() == torch.empty_like(values).stride()


def test_the_operator_passes_torchs_checks():
    arguments = torch.randn(2, 3, 4), torch.tensor(0.3), -7, 7
    utilities = "test_schema", "test_faketensor", "test_aot_dispatch_dynamic"
    torch.library.opcheck(torch.ops.bitsplit.fake_quantize.default, arguments, test_utils=utilities)
