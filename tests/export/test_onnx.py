"""ONNX files against the simulation that they were made from, in onnxruntime with its default options."""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx_networks import Attentionless, Padded, Separable, Tied, Upsampling
from small_networks import BATCHES, SMALL, TEST, Block, Levels, Residual, Signed, lively, outputs
from torch import nn

import bitsplit

onnx = pytest.importorskip("onnx", reason="needs the extra `onnx`")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
from onnx_runs import exported, initializer_types, nodes, session_outputs  # noqa: E402

# name: network, method, wbits, abits
KINDS = {
    "one scale": (lambda: lively(Residual()), "tflite", 4, 4),
    "signed inputs": (lambda: lively(Signed()), "tflite", 8, 8),
    "zero points": (lambda: lively(Signed()), "bitsplit_plus", 3, 3),
    "scales by channel, offsets": (lambda: lively(Residual()), "aciq", 4, 4),
    "half integers": (lambda: lively(Residual()), "bitsplit_plus_midrise", 2, 4),
    "half integers of four bits": (lambda: lively(Residual()), "bitsplit_plus_midrise", 4, 4),
    "bits by channel": (lambda: lively(Signed()), "aciq_mix", 3, 3),
    "folded scales": (lambda: lively(Residual()), "bitsplit_ecaq", 4, 4),
    "scales by call": (lambda: Levels().eval(), "tflite", 4, 4),
    "linear layers on sequences": (lambda: Attentionless().eval(), "tflite", 4, 4),
    "linear layers by channel": (lambda: Attentionless().eval(), "bitsplit_per_channel", 8, 8),
    "linear layers, floating-point inputs": (lambda: Attentionless().eval(), "tflite", 8, 32),
    "convolutions without anything between": (lambda: Separable().eval(), "bitsplit_plus", 8, 8),
    "transposed convolution": (lambda: lively(Upsampling()), "tflite", 4, 4),
    "grouped transposed convolution": (lambda: lively(Upsampling(groups=4)), "aciq", 4, 4),
    "a forward of its own": (lambda: lively(Padded()), "tflite", 4, 4),
    "shared weights": (lambda: lively(Tied()), "tflite", 5, 8),
    "floating-point weights": (lambda: lively(Residual()), "tflite", 32, 8),
    "floating-point inputs": (lambda: lively(Residual()), "tflite", 4, 32),
}
IN_INTEGERS = ("one scale", "zero points", "linear layers on sequences", "a forward of its own", "shared weights")
FORMS = [(kind, "float") for kind in KINDS] + [(kind, "integer") for kind in IN_INTEGERS]


@functools.cache
def quantized(kind):
    network, method, wbits, abits = KINDS[kind]
    return bitsplit.quantize(network(), BATCHES, wbits, abits, method, settings=SMALL)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file of a kind of network in a form, made once."""

    @functools.cache
    def write(kind, form="float"):
        return exported(quantized(kind), TEST[:1], tmp_path_factory.mktemp("onnx") / "model.onnx", form)

    return write


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_computes_what_the_simulation_computes(written, kind, form):
    path, expected = written(kind, form), outputs(quantized(kind))
    result = torch.cat([session_outputs(path, part) for part in TEST.split((1, 7, 8))])  # the batch is free
    deviation = ((result - expected).abs() / expected.abs().max()).flatten()
    # A value on a rounding tie may fall to the other side and move one image, but not the others.
    assert deviation.median() < 1e-6 and deviation.max() < 0.05


@pytest.mark.parametrize("kind", ["scales by channel, offsets", "floating-point inputs"])
def test_the_integer_form_is_refused_where_no_layer_can_take_it(kind, tmp_path):
    with pytest.raises(bitsplit.InputError, match="no layer .* integers: use form='float'"):
        bitsplit.export_onnx(quantized(kind), tmp_path / "model.onnx", TEST, "integer")
    assert list(tmp_path.iterdir()) == []


def test_weights_are_four_and_eight_bit_integers_of_the_networks_codes(written):
    model, qmodel = onnx.load(written("one scale")), quantized("one scale")
    constants = {constant.name: constant for constant in model.graph.initializer}
    for name, bits in qmodel.report[["name", "wbits"]].itertuples(index=False):
        constant = constants[f"{name}.codes"]
        assert constant.data_type == (onnx.TensorProto.INT4 if bits == 4 else onnx.TensorProto.INT8)
        codes = onnx.numpy_helper.to_array(constant).astype(np.int8)
        original = qmodel.get_submodule(name).codes.numpy()
        signs = np.where((codes == original).reshape(len(codes), -1).all(axis=1), 1, -1)  # turned by batch-norm's gain
        assert np.array_equal(codes, original * signs.reshape(-1, *[1] * (codes.ndim - 1)))
    assert not any(constant.dims and np.prod(constant.dims) > 100 for constant in floats(model))
    assert {opset.version for opset in model.opset_import} == {21}


def floats(model):
    return [constant for constant in model.graph.initializer if constant.data_type == onnx.TensorProto.FLOAT]


def test_three_bit_codes_are_kept_in_four_bits(written):
    assert initializer_types(written("zero points"))["INT4"] == 6


def test_the_least_code_of_half_integers_is_kept_in_four_bits(written):
    model, qmodel = onnx.load(written("half integers of four bits")), quantized("half integers of four bits")
    four = [name for name, bits in qmodel.report[["name", "wbits"]].itertuples(index=False) if bits == 4]
    kinds = {constant.name: constant.data_type for constant in model.graph.initializer}
    assert min(qmodel.get_submodule(name).codes.min() for name in four) == -8
    assert {kinds[f"{name}.codes"] for name in four} == {onnx.TensorProto.INT4}


def test_integer_layers_multiply_exactly(written):
    """Every sum of products in the integer form against int64 arithmetic."""
    model = onnx.load(written("one scale", "integer"))
    operators = [node for node in model.graph.node if node.op_type in ("ConvInteger", "MatMulInteger")]
    names = [name for node in operators for name in (*node.input, *node.output)]
    values = dict(zip(names, session_outputs(model, TEST, names), strict=True))
    assert [node.op_type for node in operators].count("ConvInteger") == 6
    for node in operators:
        x, w, *zeros = (values[name].long() for name in node.input)
        x, w = x - zeros[0], w - (zeros[1] if len(zeros) > 1 else 0)
        options = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type == "MatMulInteger":
            expected = x @ w
        else:
            padding = options["pads"][:2]
            expected = F.conv2d(x, w, None, options["strides"], padding, options["dilations"], options["group"])
        assert torch.equal(values[node.output[0]].long(), expected)


def test_batch_norm_behind_quantized_layers_is_gone(written):
    assert "BatchNormalization" not in nodes(written("one scale"))
    assert "BatchNormalization" not in nodes(written("shared weights"))  # folded into each use of its own


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "model.onnx"
    exported(quantized("floating-point inputs"), TEST, path)
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    before = path.read_bytes()

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx.checker, "check_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bitsplit.export_onnx(quantized("floating-point inputs"), path, TEST)
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"] and path.read_bytes() == before


def test_the_network_is_left_as_it_was(written):
    qmodel = quantized("scales by call")
    before, state = outputs(qmodel), {name: value.clone() for name, value in qmodel.state_dict().items()}
    written("scales by call")
    assert torch.equal(outputs(qmodel), before)
    assert all(torch.equal(value, state[name]) for name, value in qmodel.state_dict().items())


# What cannot be written


class Wayward(Residual):
    """Goes another way for bright images."""

    def forward(self, x):
        return super().forward(x if x.mean() > 0 else 2 * x)


def test_a_network_that_cannot_be_followed_is_sent_to_the_packed_file(tmp_path, capfd):
    qmodel = bitsplit.quantize(lively(Wayward()), BATCHES, 4, 4, "tflite", settings=SMALL)
    with pytest.raises(bitsplit.InputError) as caught:
        bitsplit.export_onnx(qmodel, tmp_path / "model.onnx", TEST)
    assert "torch.export cannot follow" in str(caught.value) and "bitsplit.save" in str(caught.value)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")  # nothing of what torch prints about it


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"qmodel": nn.Conv2d(3, 4, 3)}, "no quantized layer"),
        ({"form": "int"}, "form must be one of float, integer; got 'int'"),
        ({"example": TEST.numpy()}, "example must be a batch of images"),
        ({"example": torch.zeros(2, 5, 12, 12)}, "does not run on the example"),
        ({"path": "/proc/none/model.onnx"}, "cannot be written"),
    ],
)
def test_wrong_arguments_are_refused_in_a_line(tmp_path, change, reason):
    arguments = {"qmodel": quantized("one scale"), "path": tmp_path / "model.onnx", "example": TEST} | change
    with pytest.raises(bitsplit.InputError, match=reason) as caught:
        bitsplit.export_onnx(**arguments)
    assert "\n" not in str(caught.value)


def test_double_precision_is_refused_with_the_remedy(tmp_path):
    qmodel = bitsplit.quantize(Levels().double(), [batch.double() for batch in BATCHES], 4, 4, "tflite", settings=SMALL)
    with pytest.raises(bitsplit.InputError, match=r"export qmodel.float\(\)"):
        bitsplit.export_onnx(qmodel, tmp_path / "model.onnx", TEST.double())
    path = exported(qmodel.float(), TEST, tmp_path / "model.onnx")
    expected = outputs(qmodel)
    assert (session_outputs(path, TEST) - expected).abs().median() < 1e-6 * expected.abs().max()


class Several(nn.Module):
    """Outputs by name, one of them none and one a list."""

    def __init__(self, make):
        super().__init__()
        self.make, self.first, self.second = make, nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        y = self.first(x).relu()
        return self.make(y, self.second(y))


def test_outputs_in_a_dict_keep_their_names(tmp_path):
    network = Several(lambda y, z: {"aux": None, "features": [y, z], 7: z.mean((2, 3))})
    qmodel = bitsplit.quantize(network, BATCHES, 4, 4, "tflite", settings=SMALL)
    path = exported(qmodel, TEST, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path)
    assert [output.name for output in session.get_outputs()] == ["features_0", "features_1", "7"]
    expected = qmodel(TEST)
    for given, wanted in zip(session.run(None, {"x": TEST.numpy()}), [*expected["features"], expected[7]], strict=True):
        np.testing.assert_allclose(given, wanted.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda y, z: {"x": z}, "the output x has the name of an input"),
        (lambda y, z: {1: y, "1": z}, "the output 1 has the name"),
        (lambda y, z: {"p": z, "q": z}, "two outputs are one tensor"),
    ],
)
def test_names_that_a_file_cannot_have_are_refused(tmp_path, make, reason):
    qmodel = bitsplit.quantize(Several(make), BATCHES, 4, 4, "tflite", settings=SMALL)
    with pytest.raises(bitsplit.InputError, match=reason):
        bitsplit.export_onnx(qmodel, tmp_path / "model.onnx", TEST)


def test_weights_that_were_changed_are_refused(tmp_path):
    qmodel = copy.deepcopy(quantized("one scale"))
    with torch.no_grad():
        qmodel.wide.layer.weight.mul_(2)
    with pytest.raises(bitsplit.InputError, match="wide is no longer what its codes stand for"):
        bitsplit.export_onnx(qmodel, tmp_path / "model.onnx", TEST)


def test_a_computed_gain_of_batch_norm_is_not_folded(tmp_path):
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.gain = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(3, 4)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x):
            mean, variance, gain = self.norm.running_mean, self.norm.running_var, self.gain(x.mean((0, 2, 3)))
            return F.batch_norm(self.second(self.first(x).relu()), mean, variance, gain, self.norm.bias)

    qmodel = bitsplit.quantize(Conditional(), BATCHES, 4, 4, "tflite", settings=SMALL)
    path = exported(qmodel, TEST, tmp_path / "model.onnx")
    torch.testing.assert_close(session_outputs(path, TEST), outputs(qmodel), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["compiled", "autocast", "a graph of its own"])
def test_ways_to_come_to_the_export(tmp_path, way):
    qmodel = copy.deepcopy(quantized("one scale"))
    if way == "a graph of its own":
        qmodel.graph = lambda: None
    given = torch.compile(qmodel) if way == "compiled" else qmodel
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        path = exported(given, TEST, tmp_path / "model.onnx")
    torch.testing.assert_close(session_outputs(path, TEST), outputs(qmodel), rtol=1e-5, atol=1e-5)


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx_ir", None)
    with pytest.raises(bitsplit.InputError, match=r"pip install 'bitsplit\[onnx\]'"):
        bitsplit.export_onnx(quantized("one scale"), tmp_path / "model.onnx", TEST)


@pytest.mark.parametrize("method", ["bitsplit", "bitsplit_plus"])
def test_inputs_rounded_in_place_are_so_for_later_readers(method, tmp_path):
    settings = dataclasses.replace(SMALL, convention="qdrop")
    qmodel = bitsplit.quantize(Block(), BATCHES, 4, 3, method, settings=settings)
    path = exported(qmodel, TEST, tmp_path / "network.onnx")
    torch.testing.assert_close(session_outputs(path, TEST), outputs(qmodel), rtol=1e-5, atol=1e-5)
