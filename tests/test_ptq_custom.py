"""Networks of users' own: layers and forwards that do more than torch's."""

import threading

import pytest
import torch
import torch.nn.functional as F
from small_networks import error_of
from torch import nn

import bitsplit
from bitsplit.errors import InputError
from bitsplit.layers.checks import check_wrapped
from bitsplit.settings import Settings

METHODS = ("tflite", "bitsplit", "bitsplit_per_channel", "bitsplit_ecaq", "bitsplit_plus")


class Residual(nn.Linear):
    def forward(self, x):
        return x + super().forward(x)


class Normalising(nn.Linear):
    def forward(self, x):
        return super().forward(F.layer_norm(x, x.shape[-1:]))


class WithCoordinates(nn.Conv2d):
    def forward(self, x):
        column = torch.linspace(-1, 1, x.shape[-1]).expand(len(x), 1, *x.shape[2:])
        return super().forward(torch.cat([x, column], dim=1))


class Padding(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [Residual, Normalising])
def test_linear_layers_that_do_more_than_read_keep_their_input(method, kind):
    torch.manual_seed(0)
    x = torch.randn(1024, 16) * torch.logspace(-1, 1, 16)
    layers = [nn.Linear(16, 16), nn.ReLU(), kind(16, 16), nn.ReLU(), kind(16, 16), nn.ReLU(), nn.Linear(16, 8)]
    network = nn.Sequential(*layers).eval()
    quantized = bitsplit.quantize(network, [x], 8, 8, method)
    assert error_of(network, quantized, x) < 2e-3
    rows = quantized.report.set_index("name")
    assert (rows.loc[["2", "4"], "abits"] == 32).all() and rows.loc["2", "note"].startswith("input left")
    assert rows.loc["6", "abits"] == 8 and rows.loc["6", "note"] == ""


@pytest.mark.parametrize("method", METHODS)
def test_convolutions_with_a_forward_of_their_own(method):
    torch.manual_seed(0)
    x = torch.randn(16, 3, 16, 16)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), WithCoordinates(9, 8, 3), nn.ReLU(), Padding(8, 8, 3), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    quantized = bitsplit.quantize(network, [x], 8, 8, method)
    assert error_of(network, quantized, x) < 2e-2
    assert quantized.report.set_index("name")["abits"].to_dict() == {"0": 32, "2": 32, "4": 8, "8": 8}


class Asking(nn.Module):
    """Asks its layers for their type, or whether they have a weight."""

    def __init__(self, by_type: bool):
        super().__init__()
        self.by_type = by_type
        self.features = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.MaxPool2d(2)])

    def forward(self, x):
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.Conv2d) if self.by_type else hasattr(layer, "weight"):
                x = x.relu()
        return x.mean((2, 3))


def test_a_forward_that_asks_layers_for_their_type_is_refused():
    x = torch.randn(8, 3, 12, 12)
    with pytest.raises(InputError, match="once its layers are wrapped"):
        bitsplit.quantize(Asking(by_type=True), [x], 8, 8)
    network = Asking(by_type=False).eval()
    assert error_of(network, bitsplit.quantize(network, [x], 8, 8), x) < 1e-2


class Named(nn.Conv2d):
    """Takes its input by another name."""

    def forward(self, x):
        return super().forward(x)


class Naming(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Named(3, 4, 3)

    def forward(self, x):
        return self.layer(x=x)


class Joining(nn.Conv2d):
    """Takes several tensors."""

    def forward(self, parts):
        return super().forward(torch.cat(parts, 1))


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.join, self.head = nn.Conv2d(3, 4, 3), Joining(8, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head(self.join([x, 2 * x]).relu().mean((2, 3)))


class Kept(nn.Module):
    """Calls its layers by a list or a tuple, as some pyramids do, or their forward itself."""

    def __init__(self, kind: type, forward: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.direct, layers = forward, [nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)]
        self.levels = {"fine": kind(layers)}
        for number, layer in enumerate(layers):
            self.add_module(f"level{number}", layer)

    def forward(self, x):
        x = self.stem(x).relu()
        for layer in self.levels["fine"]:
            x = (layer.forward(x) if self.direct else layer(x)).relu()
        return self.last(x.mean((2, 3)))


@pytest.mark.parametrize("method", ["bitsplit", "bitsplit_plus"])
def test_layers_called_by_a_list_read_quantized_inputs(method):
    quantized = bitsplit.quantize(Kept(list), [torch.rand(32, 3, 12, 12)], 8, 2, method)
    read = []
    quantized.level0.layer.register_forward_pre_hook(lambda _, args: read.append(args[0].unique().numel()))
    quantized(torch.rand(2, 3, 12, 12))
    assert quantized.levels["fine"][0] is quantized.level0 and read == [4]


@pytest.mark.parametrize("forward", [True, False])
def test_layers_called_by_a_tuple_are_refused(forward):
    with pytest.raises(InputError, match="the network calls level0 where nothing can take its place"):
        bitsplit.quantize(Kept(tuple, forward), [torch.rand(32, 3, 12, 12)], 8, 2)
    bitsplit.quantize(Kept(list, forward), [torch.rand(32, 3, 12, 12)], 8, 2)


def test_a_forward_that_does_not_run_with_wrapped_layers_is_refused():
    with pytest.raises(InputError, match="does not run once its layers are wrapped"):
        bitsplit.quantize(Naming(), [torch.randn(8, 3, 12, 12)])


@pytest.mark.parametrize("method", ["bitsplit", "bitsplit_plus"])
def test_a_layer_that_takes_several_tensors_keeps_them(method):
    network, x = Joined().eval(), torch.randn(8, 3, 12, 12)
    quantized = bitsplit.quantize(network, [x], 8, 8, method)
    assert error_of(network, quantized, x) < 1e-2
    assert quantized.report.set_index("name").loc["join", ["wbits", "abits"]].tolist() == [8, 32]


def test_networks_that_draw_are_not_refused():
    check_wrapped(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train(), torch.randn(8, 4))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.block(self.patch(x).flatten(2).mT).mean(dim=1))


@pytest.mark.parametrize("method", ["bitsplit", "bitsplit_plus"])
def test_the_fast_path_of_transformers_reads_no_weight_past_its_quantizer(method):
    torch.manual_seed(0)
    network, x = Encoder().eval(), torch.randn(32, 3, 32, 32)
    quantized = bitsplit.quantize(network, [x], 8, 4, method)
    with torch.no_grad():
        fast = quantized(x)
    torch.testing.assert_close(fast, quantized(x).detach())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        x = self.first(x).relu()
        for factor in (1, 10, 100):
            x = self.again(x * factor).relu()
        return self.head(x.mean((2, 3)))


def test_threads_count_the_calls_of_a_layer_each_for_itself():
    torch.manual_seed(0)
    x = torch.randn(32, 3, 16, 16)
    quantized = bitsplit.quantize(Recurrent().eval(), [x], 8, 8)
    expected, found = quantized(x).detach(), []

    def run():
        with torch.no_grad():
            found.extend(quantized(x) for _ in range(20))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    for output in found:
        torch.testing.assert_close(output, expected)


class Skip(nn.Module):
    """A U-Net's step up, with a skip that is added."""

    def __init__(self):
        super().__init__()
        self.top, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.up, self.head = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        top = self.top(x).relu()
        return self.head((self.up(self.down(top).relu()) + top).relu())


class Late(nn.Module):
    """Makes a table in its first forward."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 3, padding=1)
        self.head, self.table = nn.Linear(16, 6), None

    def forward(self, x):
        if self.table is None:
            self.table = torch.linspace(0, 1, 16).add(1)
        x = (self.stem(x) * self.table).relu()
        return self.head((x + self.b(self.a(x).relu())).relu().mean((2, 3)))


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.c(input=self.b(input=self.a(x)).relu())


class Regions(nn.Module):
    """A head on what was found, which may be nothing."""

    def __init__(self):
        super().__init__()
        self.a, self.regions, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        features = self.a(x).relu().mean((2, 3))
        return torch.cat([self.head(features), self.regions(features[features[:, 0] > 1e3])])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Conv2d(3, 8, 2, stride=2), nn.ConvTranspose2d(8, 3, 2, stride=2)
        self.between, self.decode.weight = nn.Conv2d(8, 8, 1), self.encode.weight

    def forward(self, x):
        return self.decode(self.between(self.encode(x).relu()).relu())


@pytest.mark.parametrize("method", ["bitsplit", "bitsplit_plus"])
@pytest.mark.parametrize("kind", [Skip, Late, Keywords, Regions, Tied])
def test_forwards_of_many_kinds(kind, method):
    torch.manual_seed(0)
    network, x = kind().eval(), torch.randn(16, 3, 16, 16)
    quantized = bitsplit.quantize(network, [x], 8, 8, method)
    assert error_of(network, quantized, x) < 1e-2


def test_weights_with_other_rows_in_another_layer_stay_in_floating_point():
    quantized = bitsplit.quantize(Tied(), [torch.randn(8, 3, 16, 16)], 4, 4)
    notes = quantized.report.set_index("name")["note"]
    assert notes["between"] == "" and notes["encode"].startswith("left in floating point")


def test_expanded_inputs_are_not_rounded_in_place():
    class Query(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.query = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(1, 1, 8))
            self.values, self.keys, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x):
            tokens = self.values(self.a(x).relu().flatten(2).mT)
            return self.head((tokens + self.keys(self.query.expand(len(x), -1, -1))).relu().mean(dim=1))

    torch.manual_seed(0)
    network, x = Query().eval(), torch.randn(8, 3, 16, 16) * torch.linspace(0.1, 3, 8).reshape(-1, 1, 1, 1)
    for convention in ("brecq", "qdrop"):
        quantized = bitsplit.quantize(network, [x], 8, 8, settings=Settings(convention=convention))
        assert error_of(network, quantized, x) < 2e-2


def test_layers_with_layers_inside_are_refused():
    class Adapted(nn.Linear):
        def __init__(self, size):
            super().__init__(size, size)
            self.low, self.high = nn.Linear(size, 2, bias=False), nn.Linear(2, size, bias=False)

        def forward(self, x):
            return super().forward(x) + self.high(self.low(x))

    with pytest.raises(InputError, match=r"1 is a layer with others inside \(low\)"):
        bitsplit.quantize(nn.Sequential(nn.Linear(4, 4), Adapted(4), nn.Linear(4, 2)), [torch.randn(8, 4)], 8, 8)
