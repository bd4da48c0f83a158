"""Packed files: what comes back is what was saved, to the last bit, and no larger than its codes."""

import copy
import dataclasses
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from conftest import ROOT, environment
from small_networks import BATCHES, SMALL, TEST, Levels, Odd, Residual, assert_same, every_method, lively, outputs
from torch import nn
from torch.nn.utils import parametrizations

import bitsplit
from bitsplit.export.architecture import architecture_digest
from bitsplit.export.packed.bit_packing import pack_rows, packed_size, row_widths, unpack_rows
from bitsplit.layers.quantized import QuantizedLayer


def bits_of(value: int, width: int) -> str:
    """Two's complement, the least bit first, from Python's own numbers."""
    return f"{value % 2**width:0{width}b}"[::-1] if width else ""


def read_codes(data: bytes, width: int, count: int) -> list[int]:
    stream = "".join(f"{byte:08b}"[::-1] for byte in data)
    unsigned = [int(stream[i * width : (i + 1) * width][::-1], 2) for i in range(count)]
    return [value - 2**width if value >= 2 ** (width - 1) else value for value in unsigned]


# The codes alone


@pytest.mark.parametrize("width", range(2, 9))
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (3, 8), (4, 1), (0, 3), (3, 0)])
def test_codes_take_their_bits_and_come_back(width, shape):
    high = 2 ** (width - 1) - 1
    codes = np.random.default_rng(width).integers(-high, high + 1, shape).astype(np.int8)
    widths = row_widths(codes, width)
    packed = pack_rows(codes, widths)
    stream = "".join(bits_of(int(code), width) for code in codes.flatten())
    assert (widths == width).all()
    assert "".join(f"{byte:08b}"[::-1] for byte in packed).startswith(stream)
    assert len(packed) == math.ceil(len(stream) / 8) == packed_size(widths, shape[1])
    assert np.array_equal(unpack_rows(packed, widths, shape[1]), codes)


def test_rows_that_need_other_bits_take_those():
    codes = np.array([[0, 0, 0], [1, -1, 0], [7, 0, -7], [0, -1, 0], [127, -127, 3]], dtype=np.int8)
    widths = row_widths(codes, 3)
    assert widths.tolist() == [0, 2, 4, 1, 8]
    packed = pack_rows(codes, widths)
    assert len(packed) == packed_size(widths, 3) == 0 + 1 + 1 + 2 + 3
    assert np.array_equal(unpack_rows(packed, widths, 3), codes)


def test_more_codes_than_are_packed_at_a_time():
    codes = np.random.default_rng(0).integers(-3, 4, (3, 2**19 + 5)).astype(np.int8)
    widths = row_widths(codes, 3)
    packed = pack_rows(codes, widths)
    assert len(packed) == math.ceil(codes.size * 3 / 8)
    assert np.array_equal(unpack_rows(packed, widths, codes.shape[1]), codes)


@pytest.mark.parametrize("change", [-1, 1])
def test_another_number_of_bytes_is_refused(change):
    packed = pack_rows(np.ones((4, 5), dtype=np.int8), np.full(4, 3))
    with pytest.raises(ValueError, match="bytes of codes instead of 8"):
        unpack_rows(np.resize(packed, len(packed) + change), np.full(4, 3), 5)


# Whole networks


class Shared(nn.Module):
    """Linear layers that share a weight, a module held in two places, a transposed convolution, an embedded buffer."""

    def __init__(self):
        super().__init__()
        self.patch, self.up = nn.Conv2d(3, 8, 3, stride=3), nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.token, self.tied = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.tied.weight = self.token.weight
        self.again = nn.ModuleDict({"token": self.token})
        self.gain, self.head = nn.Parameter(torch.rand(6)), nn.Linear(6, 2)
        self.register_buffer("shift", torch.rand(6))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, x):
        x = self.up(self.patch(x).relu()).relu().flatten(2).transpose(1, 2)
        x = self.tied(self.again["token"](self.token(x).relu()).relu()) * self.gain + self.shift
        return self.head(x.mean(dim=1))


class StaticSame(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


class OwnForward(nn.Sequential):
    def __init__(self):
        super().__init__(StaticSame(3, 4, 2), nn.ReLU(), nn.BatchNorm2d(4), StaticSame(4, 4, 2), nn.Flatten())
        self.append(nn.Linear(4 * 144, 3))


def made(architecture, seed):
    torch.manual_seed(seed)
    network = lively(Residual(seed) if architecture is Residual else architecture())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter[0] *= 5  # a channel that wants more bits than the others
    return network


def assert_round_trip(quantized, model, path, x=TEST):
    """Saved, loaded into `model`, which stays as it is, and saved again."""
    before = copy.deepcopy(model.state_dict())
    bitsplit.save(quantized, path)
    content = path.read_bytes()
    loaded = bitsplit.load(path, model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not any(isinstance(module, QuantizedLayer) for module in model.modules()) and not hasattr(model, "report")
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(outputs(loaded, x), outputs(quantized, x))
    assert loaded.report.equals(quantized.report) and (loaded.report.dtypes == quantized.report.dtypes).all()
    assert loaded.seconds == quantized.seconds and loaded.configuration == quantized.configuration
    assert getattr(loaded, "lockstep_images", None) == getattr(quantized, "lockstep_images", None)
    bitsplit.save(loaded, path)
    assert path.read_bytes() == content
    return loaded


@every_method
def test_every_methods_result_comes_back(method, tmp_path):
    quantized = bitsplit.quantize(made(Residual, 0), BATCHES[:2], 3, 4, method, settings=SMALL)
    assert_same(assert_round_trip(quantized, made(Residual, 1), tmp_path / "network"), quantized)


@pytest.mark.parametrize("method", ["tflite", "aciq_mix", "bitsplit_plus"])
@pytest.mark.parametrize("architecture", [Levels, Shared, OwnForward], ids=lambda a: a.__name__)
def test_unusual_networks_come_back(architecture, method, tmp_path):
    quantized = bitsplit.quantize(made(architecture, 0), BATCHES[:2], 3, 4, method, settings=SMALL)
    assert_round_trip(quantized, made(architecture, 1), tmp_path / "network")


@pytest.mark.parametrize("method", ["tflite", "bitsplit_plus"])
def test_inputs_rounded_in_place_come_back(method, tmp_path):
    settings = dataclasses.replace(SMALL, convention="qdrop")
    quantized = bitsplit.quantize(made(Residual, 0), BATCHES[:2], 3, 4, method, settings=settings)
    loaded = assert_round_trip(quantized, made(Residual, 1), tmp_path / "network")
    assert loaded.get_submodule("wide").input_quantizer.in_place


def test_sharing_is_kept(tmp_path):
    quantized = bitsplit.quantize(made(Shared, 0), BATCHES, 4, 4, "tflite", settings=SMALL)
    loaded = assert_round_trip(quantized, made(Shared, 1), tmp_path / "network.safetensors")
    assert loaded.again["token"] is loaded.token and loaded.tied.weight is loaded.token.weight
    assert loaded.tied.input_quantizer is loaded.token.input_quantizer and loaded.tied.bias is None
    with safetensors.safe_open(tmp_path / "network.safetensors", "pt") as file:
        names = set(file.keys())
    assert "token.weight_packed" in names and "tied.weight_packed" not in names
    assert "scratch" not in names and {"gain", "shift", "token.bias"} <= names


@pytest.mark.parametrize("bits", [(32, 32), (32, 4), (4, 32), (8, 8)], ids=str)
def test_floating_point_sides_come_back(network, bits, tmp_path):
    quantized = bitsplit.quantize(network, BATCHES, *bits, "tflite", settings=SMALL)
    assert_same(assert_round_trip(quantized, lively(Residual(3)), tmp_path / "network.safetensors"), quantized)


@pytest.mark.parametrize("method", ["tflite", "bitsplit_plus", "aciq_mix"])
def test_double_precision_and_channels_last(network, method, tmp_path):
    double, images = network.double(), [x.double() for x in BATCHES]
    quantized = bitsplit.quantize(double, images, 4, 4, method, settings=SMALL)
    assert_round_trip(quantized, Residual(1).double(), tmp_path / "double", TEST.double())
    last = network.float().to(memory_format=torch.channels_last)
    quantized = bitsplit.quantize(last, BATCHES, 4, 4, method, settings=SMALL)
    loaded = assert_round_trip(quantized, Residual(1).to(memory_format=torch.channels_last), tmp_path / "last")
    assert loaded.wide.weight.is_contiguous(memory_format=torch.channels_last)


def test_layers_that_cannot_be_quantized_come_back(tmp_path):
    x = torch.cat([TEST, TEST[:, :1]], dim=1)
    batches = [torch.cat([x, x[:, :1]], dim=1) for x in BATCHES]
    quantized = bitsplit.quantize(Odd(), batches, 4, 4, "tflite", settings=SMALL)
    assert_round_trip(quantized, Odd(), tmp_path / "odd", x)

    def normed():
        weight_norm = parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), weight_norm, nn.ReLU(), nn.Conv2d(4, 2, 1))

    quantized = bitsplit.quantize(normed(), BATCHES, 4, 4, "tflite", settings=SMALL)
    assert_round_trip(quantized, normed(), tmp_path / "normed")


def test_a_lone_layer_comes_back(tmp_path):
    quantized = bitsplit.quantize(nn.Conv2d(3, 4, 3), BATCHES, 4, 4, "tflite", settings=SMALL)
    assert_round_trip(quantized, nn.Conv2d(3, 4, 3), tmp_path / "layer")


def test_the_order_of_calls_begins_anew(tmp_path):
    """The file of a network that was interrupted in the middle of a forward is that of one that was not."""
    quantized = bitsplit.quantize(Levels(), BATCHES, 4, 4, "tflite", settings=SMALL)
    expected = outputs(quantized)
    quantized.one(torch.rand(1, 4, 4, 4))
    bitsplit.save(quantized, tmp_path / "levels")
    assert torch.equal(outputs(bitsplit.load(tmp_path / "levels", Levels())), expected)


def test_statistics_of_batch_norm_are_the_quantized_networks(network, tmp_path):
    quantized = bitsplit.quantize(network, BATCHES, 3, 3, "bitsplit", settings=SMALL)
    assert not torch.equal(quantized.main[1].running_mean, network.main[1].running_mean)
    bitsplit.save(quantized, tmp_path / "network")
    loaded = bitsplit.load(tmp_path / "network", network)
    assert torch.equal(loaded.main[1].running_mean, quantized.main[1].running_mean)
    assert torch.equal(loaded.main[1].running_var, quantized.main[1].running_var)


# What others see in the file


def test_the_file_reads_as_its_names_say(network, tmp_path):
    quantized = bitsplit.quantize(network, BATCHES, 3, 5, "bitsplit", settings=SMALL)
    path = tmp_path / "network.safetensors"
    bitsplit.save(quantized, path)
    tensors = safetensors.torch.load_file(path)
    wide = quantized.wide
    assert tensors["wide.weight_shape"].tolist() == [12, 12, 3, 3]
    assert tensors["wide.weight_packed"].nbytes == math.ceil(wide.codes.numel() * 3 / 8)
    codes = read_codes(bytes(tensors["wide.weight_packed"].tolist()), 3, wide.codes.numel())
    assert torch.equal(torch.tensor(codes, dtype=torch.int8).reshape(12, 12, 3, 3), wide.codes)
    assert torch.equal(tensors["wide.weight_scale"], wide.scale) and torch.equal(tensors["wide.bias"], wide.bias)
    assert torch.equal(tensors["wide.input_scale"], wide.input_quantizer.scale)
    assert torch.equal(tensors["stem_norm.running_var"], quantized.stem_norm.running_var)
    with safetensors.safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["bitsplit"])
    assert facts["format"] == 1 and facts["architecture"] == architecture_digest(network)
    observed = list(wide.input_quantizer.observed)
    assert facts["layers"]["wide"] == {
        "wbits": 3,
        "inputs": [{"bits": 5, "signed": False, "zero": 0, "folded": False, "in_place": False, "observed": observed}],
    }
    assert facts["configuration"]["method"]["name"] == "bitsplit"
    assert facts["configuration"]["settings"]["bits"]["first_wbits"] == 8
    assert [row["name"] for row in facts["report"]] == list(quantized.report["name"])


def test_bits_by_channel_cost_their_mean(tmp_path):
    quantized = bitsplit.quantize(made(Residual, 0), BATCHES, 4, 4, "aciq_mix", settings=SMALL)
    bitsplit.save(quantized, tmp_path / "mixed")
    tensors = safetensors.torch.load_file(tmp_path / "mixed")
    widths = tensors["wide.weight_bits"]
    assert widths.double().mean() <= 4 and len(set(widths.tolist())) > 1
    assert tensors["wide.weight_packed"].nbytes <= math.ceil(quantized.wide.codes.numel() * 4 / 8) + 8
    assert tensors["wide.input_bits"].shape == (12, 1, 1) and tensors["wide.input_bits"].mean() == 4


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "share"), [(4, 0.14), (3, 0.11)])
def test_resnet18_takes_little_more_than_its_bits(bits, share, tmp_path):
    from bitsplit.vision import torchvision

    torch.manual_seed(0)
    network = torchvision.models.resnet18().eval()
    safetensors.torch.save_file(network.state_dict(), tmp_path / "float")
    quantized = bitsplit.quantize(network, [torch.rand(2, 3, 64, 64)], bits, bits, "tflite", settings=SMALL)
    loaded = assert_round_trip(quantized, torchvision.models.resnet18(), tmp_path / "packed", torch.rand(2, 3, 64, 64))
    size = os.path.getsize(tmp_path / "packed")
    assert size < share * os.path.getsize(tmp_path / "float")
    assert f"{size / 1e6:.1f} MB packed" in loaded.summary()


# What cannot be saved


def refused(says, qmodel, path):
    with pytest.raises(bitsplit.InputError, match=says) as error:
        bitsplit.save(qmodel, path)
    assert "\n" not in str(error.value)


def test_what_cannot_be_saved_is_refused(network, tmp_path):
    quantized = bitsplit.quantize(network, BATCHES, 4, 4, "tflite", settings=SMALL)
    refused("bitsplit.quantize", network, tmp_path / "network")
    refused("bitsplit.quantize", "network", tmp_path / "network")
    (tmp_path / "folder").mkdir()
    refused("folder is a folder", quantized, tmp_path / "folder")
    (tmp_path / "file").write_bytes(b"")
    refused("cannot be written", quantized, tmp_path / "file" / "network")
    with torch.no_grad():
        quantized.wide.layer.weight += 1
    refused("wide.weight is no longer what its codes stand for", quantized, tmp_path / "network")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


class Keeping(nn.Conv2d):
    """With a state that is no tensor."""

    def get_extra_state(self):
        return 2.0

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda qmodel: qmodel.half(), "in float16: save the network before"),
        (lambda qmodel: qmodel.get_submodule("1").layer.weight.mul_(2), "no longer what its codes stand for"),
        (lambda qmodel: qmodel.append(Keeping(4, 4, 1)), "2 has an extra state"),
    ],
)
def test_what_a_file_would_lose_is_refused(tmp_path, change, reason):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    qmodel = bitsplit.quantize(network, BATCHES, 4, 4, settings=SMALL)
    with torch.no_grad():
        change(qmodel)
    with pytest.raises(bitsplit.InputError, match=reason):
        bitsplit.save(qmodel, tmp_path / "network")
    assert not list(tmp_path.iterdir())


def test_another_precision_comes_back(tmp_path):
    """Also where weights stay in floating point, and inputs have scales."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    for wbits in (4, 32):
        qmodel = bitsplit.quantize(network, BATCHES, wbits, 4, settings=SMALL).double()
        bitsplit.save(qmodel, tmp_path / "network")
        loaded = bitsplit.load(tmp_path / "network", copy.deepcopy(network).double())
        assert torch.equal(loaded(TEST.double()), qmodel(TEST.double()))


@pytest.mark.parametrize(
    "kind",
    [
        lambda n: nn.GroupNorm(n, 8),
        lambda n: nn.MultiheadAttention(8, n),
        lambda n: nn.MultiheadAttention(8, 2, batch_first=n == 2),
    ],
)
def test_groups_and_heads_belong_to_the_architecture(kind):
    assert architecture_digest(nn.Sequential(kind(2))) == architecture_digest(nn.Sequential(kind(2)))
    assert architecture_digest(nn.Sequential(kind(2))) != architecture_digest(nn.Sequential(kind(4)))


def test_a_function_of_the_users_own_is_no_geometry():
    class Pads(nn.Module):
        def __init__(self):
            super().__init__()
            self.padding = lambda x: F.pad(x, (1, 1))

    assert architecture_digest(Pads()) == architecture_digest(Pads())


def test_what_is_there_leaves_its_permissions_and_a_device_is_refused(network, tmp_path):
    qmodel, path = bitsplit.quantize(network, BATCHES, 4, 4, "tflite", settings=SMALL), tmp_path / ("n" * 240)
    path.touch(0o600)
    bitsplit.save(qmodel, path)
    assert path.stat().st_mode & 0o777 == 0o600 and path.stat().st_size > 1000
    os.mkfifo(tmp_path / "pipe")
    for write in (bitsplit.save, lambda qmodel, path: qmodel.to_html(path)):
        with pytest.raises(bitsplit.InputError, match="pipe is no ordinary file"):
            write(qmodel, tmp_path / "pipe")


def test_a_name_that_stands_for_two_things_is_refused(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    network[2].weight_scale = nn.Parameter(torch.ones(2))
    quantized = bitsplit.quantize(network, BATCHES, 4, 4, "tflite", settings=SMALL)
    refused("2.weight_scale is a parameter", quantized, tmp_path / "network")


def test_a_file_that_cannot_be_finished_leaves_the_one_before(network, tmp_path):
    """The system ends the writing in the middle, as a full disk does."""
    path = tmp_path / "network.safetensors"
    bitsplit.save(bitsplit.quantize(network, BATCHES, 4, 4, "tflite", settings=SMALL), path)
    before = path.read_bytes()
    code = """
import resource, signal, sys
sys.path.insert(0, "tests")
from small_networks import Residual, lively
import bitsplit
loaded = bitsplit.load(sys.argv[1], lively(Residual()))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    bitsplit.save(loaded, sys.argv[1])
except bitsplit.InputError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=ROOT, env=environment()
    )
    assert done.returncode == 0 and "cannot be written (File too large)" in done.stdout, done.stderr
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
