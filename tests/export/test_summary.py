"""The summary of a quantized network, and the rows of its report for weights that no layer of ours covers."""

import copy
import io
import pickle

import pytest
import safetensors.torch
import torch
from small_networks import BATCHES, SMALL, Residual, every_method, lively
from torch import nn
from torch.nn.utils import parametrizations

import bitsplit


class Attention(nn.Module):
    """Tokens with every kind of parameter that is no weight of a convolution or linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.position = nn.Conv2d(3, 8, 4, stride=4), nn.Parameter(torch.rand(1, 9, 8))
        self.table, self.norm = nn.Embedding(9, 8), nn.LayerNorm(8)
        self.layer_scale, self.token = nn.Parameter(torch.ones(8, 1, 1)), nn.Parameter(torch.rand(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mix, self.normed = nn.Conv1d(8, 8, 3, padding=1), parametrizations.weight_norm(nn.Conv1d(8, 8, 1))
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = (self.patch(x) * self.layer_scale).flatten(2).transpose(1, 2)
        x = self.norm(x + self.position + self.token + self.table.weight)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.normed(self.mix(x.transpose(1, 2))).transpose(1, 2)
        return self.head(self.body(x).relu().mean(dim=1))


LEFT = {"attention.in_proj_weight": (24, 8), "attention.out_proj": (8, 8), "mix": (8, 8, 3), "position": (1, 9, 8)}
LEFT |= {"table": (9, 8), "normed.parametrizations.weight.original1": (8, 8, 1)}


@pytest.mark.parametrize("method", ["tflite", "bitsplit_plus"])
def test_every_weight_is_a_row_of_the_report(method):
    rows = bitsplit.quantize(Attention(), BATCHES, 4, 4, method, settings=SMALL).report.set_index("name")
    assert set(rows.index) == {"patch", "body", "head", *LEFT}
    for name, shape in LEFT.items():
        row = rows.loc[name]
        assert row["shape"] == shape and row["wbits"] == row["abits"] == 32
        assert row["note"].startswith("left in floating point: ")
    assert "of MultiheadAttention, which is not supported" in rows["note"]["attention.in_proj_weight"]
    assert "1-D convolution, which is not supported" in rows["note"]["mix"]
    assert "of Embedding" in rows["note"]["table"]


def test_a_parameter_beside_the_weight_has_the_layers_name():
    class Adapted(nn.Linear):
        def __init__(self):
            super().__init__(8, 8)
            self.adapter, self.inner = nn.Parameter(torch.rand(8, 2)), nn.Bilinear(2, 2, 3)

        def forward(self, x):
            return super().forward(x) + (x @ self.adapter).sum()

    network = nn.Sequential(nn.Conv2d(3, 8, 12), nn.Flatten(), Adapted(), nn.ReLU(), nn.Linear(8, 2))
    report = bitsplit.quantize(network, BATCHES, 4, 4, "tflite", settings=SMALL).report
    assert list(report["name"]) == ["0", "2", "4", "2.adapter", "2.inner"]


def test_a_network_in_floating_point_has_the_same_rows():
    quantized = bitsplit.quantize(Attention(), BATCHES, 4, 4, "tflite", settings=SMALL)
    floating = bitsplit.quantize(Attention(), BATCHES, 32, 32, "tflite", settings=SMALL)
    assert set(quantized.report["name"]) == set(floating.report["name"])
    assert "100% in floating point" in floating.summary() and "(1.00 of floating point)" in floating.summary()


def test_an_embedding_that_shares_a_weight_is_counted_once_in_floating_point():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.head, self.table = nn.Conv2d(3, 4, 12), nn.Linear(4, 4), nn.Embedding(4, 4)
            self.table.weight = self.head.weight

        def forward(self, x):
            return self.head(self.patch(x).flatten(1) + self.table.weight[0])

    assert list(bitsplit.quantize(Tied(), BATCHES, 32, 32).report["name"]) == ["patch", "head"]
    rows = bitsplit.quantize(Tied(), BATCHES, 4, 4, "tflite", settings=SMALL).report.set_index("name")
    assert rows["wbits"].to_dict() == {"patch": 8, "head": 8, "table": 32}  # a float32 of its own from then on


@every_method
def test_the_size_is_that_of_the_file(method, tmp_path):
    network = lively(Residual())
    with torch.no_grad():
        network.wide.weight[0] *= 5
    quantized = bitsplit.quantize(network, BATCHES, 4, 4, method, settings=SMALL)
    bitsplit.save(quantized, tmp_path / "packed")
    packed = sum(tensor.nbytes for tensor in safetensors.torch.load_file(tmp_path / "packed").values())
    original = sum(tensor.nbytes for tensor in network.state_dict().values())
    assert f"{packed / 1e3:.1f} kB packed ({packed / original:.2f} of floating point)" in quantized.summary()


def test_the_summary_names_bits_and_the_worst_layers():
    quantized = bitsplit.quantize(lively(Residual()), BATCHES, 4, 4, "tflite", settings=SMALL)
    sizes = quantized.report["shape"].map(lambda shape: torch.Size(shape).numel())
    at_four = sizes[quantized.report["wbits"] == 4].sum() / sizes.sum()
    (line,) = quantized.summary().splitlines()
    assert line.startswith(f"weights: {at_four:.0%} at 4 bits, {1 - at_four:.0%} at 8 bits; ")
    worst = quantized.report.nlargest(1, "relative_error").iloc[0]
    assert f"output: {worst['name']} ({100 * worst['relative_error']:.2g}%)," in line


def test_less_than_nine_tenths_are_a_warning_with_the_reasons():
    _, warning = bitsplit.quantize(Attention(), BATCHES, 4, 4, "tflite", settings=SMALL).summary().splitlines()
    assert warning.startswith("warning: ") and "of the weights are not quantized" in warning
    assert "a parameter of MultiheadAttention, which is not supported (attention.in_proj_weight)" in warning
    given = {"body": (32, 32)}
    network = nn.Sequential(nn.Conv2d(3, 4, 12), nn.Flatten())
    network.add_module("body", nn.Linear(4, 400))
    network.add_module("head", nn.Linear(400, 2))
    quantized = bitsplit.quantize(network, BATCHES, 4, 4, "tflite", bits=given, settings=SMALL)
    assert "as the bits ask for (body)" in quantized.summary()


def test_copies_and_pickles_summarize_themselves():
    quantized = bitsplit.quantize(lively(Residual()), BATCHES, 4, 4, "tflite", settings=SMALL)
    buffer = io.BytesIO()
    torch.save(quantized, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized)), torch.load(buffer, weights_only=False)]
    expected = quantized.summary()
    for other in copies:
        assert other.summary() == expected
        other.report = other.report.iloc[:1]
        assert other.summary() != expected and quantized.summary() == expected


@pytest.mark.parametrize(
    ("layer", "x", "says"),
    [
        (nn.Conv1d(3, 4, 3), (2, 3, 8), "has Conv1d layers alone"),
        (nn.Conv3d(3, 4, 3), (2, 3, 8, 8, 8), "has Conv3d layers alone"),
        (nn.ConvTranspose1d(3, 4, 3), (2, 3, 8), "has ConvTranspose1d layers alone"),
    ],
)
def test_networks_of_other_convolutions_alone_are_refused(layer, x, says):
    with pytest.raises(bitsplit.InputError, match=f"{says}, which bitsplit does not quantize") as error:
        bitsplit.quantize(nn.Sequential(layer, nn.ReLU()), [torch.rand(x)], 4, 4)
    assert "\n" not in str(error.value)
