"""Forwards in lock-step: what they show at each stop, that they agree on the way, and that none outlives the pass."""

import threading

import pytest
import torch
from torch import nn

from bitsplit.errors import InputError
from bitsplit.statistics.lockstep import Lockstep, images_in_memory
from bitsplit.statistics.reads import measure_reads

PIECES = list(torch.rand(5, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


class Block(nn.Module):
    """A stem, a block with a shortcut, a down-sampling one whose shortcut comes second, and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6)
        self.main, self.main_norm = nn.Conv2d(6, 8, 3, 2, padding=1), nn.BatchNorm2d(8)
        self.down = nn.Conv2d(6, 8, 1, 2)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem_norm(self.stem(x)).relu_()
        x = torch.relu(self.norm(self.conv(x)) + x)
        y = self.main_norm(self.main(x))
        y += self.down(x)
        return self.fc(y.relu().mean(dim=(2, 3)))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Block().eval()


@pytest.fixture(autouse=True)
def no_thread_and_no_hook_is_left(network):
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())


def lockstep(networks, lanes=2, pieces=PIECES):
    return Lockstep(networks, measure_reads(networks[0], PIECES[0].clone()), pieces, lanes)


@pytest.mark.parametrize("lanes", [1, 3])
def test_stops_show_what_every_layer_reads_on_all_pieces(network, lanes):
    other = Block().eval()
    inputs, handles = {}, []
    for index, module in enumerate((network, other)):
        for name, layer in module.named_children():
            handles.append(
                layer.register_forward_pre_hook(
                    lambda _, x, k=(index, name): inputs.setdefault(k, []).append(x[0].clone())
                )
            )
    with torch.no_grad():
        for module in (network, other):
            for piece in PIECES:
                module(piece)
    for handle in handles:
        handle.remove()
    seen = []
    with lockstep((network, other), lanes) as stops:
        for stop in stops:
            seen.append(stop.name)
            for index in range(2):
                for shown, expected in zip(stop.values[index], inputs[index, stop.name], strict=True):
                    if stop.norm:
                        assert torch.allclose(shown[0].float(), expected.mean(dim=(0, 2, 3)), atol=1e-6)
                        assert shown[1] == expected.numel() // expected.shape[1]
                    else:
                        assert torch.equal(shown[0].input, expected)
    assert seen == ["stem", "stem_norm", "conv", "norm", "main", "main_norm", "down", "fc"]


def test_the_last_layer_before_an_addition_is_shown_the_other_summand(network):
    reads = measure_reads(network, PIECES[0])
    assert {name: read.shortcut and read.shortcut.norm for name, read in reads.items() if read.shortcut} == {
        "conv": "norm",
        "down": None,
    }
    assert {name for name, read in reads.items() if read.normalised} == {"stem", "conv", "main"}
    with torch.no_grad():
        stem = network.stem_norm(network.stem(PIECES[3])).relu()
        main = network.main_norm(network.main(torch.relu(network.norm(network.conv(stem)) + stem)))
    shortcuts = {}
    with lockstep((network,)) as stops:
        for stop in stops:
            if not stop.norm:
                shortcut = stop.values[0][3][1]
                shortcuts[stop.name] = None if shortcut is None else shortcut.clone()  # it may change in place
    assert torch.equal(shortcuts["conv"], stem) and torch.equal(shortcuts["down"], main)
    assert shortcuts["main"] is None


def test_two_layers_may_have_the_same_shortcut():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)

        def forward(self, x):
            x = self.stem(x).relu()
            return (x + self.one(x)) * (x + self.two(x))

    with lockstep((Branches().eval(),)) as stops:
        shown = {stop.name: [shortcut is not None for _, shortcut in stop.values[0]] for stop in stops}
    every = [True] * len(PIECES)
    assert shown == {"stem": [False] * len(PIECES), "one": every, "two": every}


def test_a_layer_goes_on_with_what_its_input_was_rewritten_to(network):
    with lockstep((network, network)) as stops:
        for stop in stops:
            if stop.name == "stem":
                stop.rewrite(1, torch.zeros_like)
            if stop.name == "stem_norm":
                (plain, _), (changed, _) = stop.values[0][0], stop.values[1][0]
                assert torch.allclose(changed.float(), network.stem.bias) and not torch.allclose(changed, plain)


def test_the_forwards_read_copies_of_the_images(network):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x.sub_(1))

    kept = [piece.clone() for piece in PIECES]
    with lockstep((InPlace(),)) as stops:
        list(stops)
    assert all(torch.equal(piece, before) for piece, before in zip(PIECES, kept, strict=True))


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("inside", [True, False])
def test_an_exception_in_a_forward_or_between_ends_all(network, error, inside):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            y = self.network(x)
            if inside and torch.equal(x, PIECES[2]):
                raise error
            return y

    with pytest.raises(type(error)), lockstep((Breaks(),)) as stops:
        for stop in stops:
            if not inside and stop.name.endswith("main"):
                raise error


def test_forwards_that_take_different_ways_are_named(network):
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.left, self.right = network, nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            y = self.network(x)
            return self.left(y) if torch.equal(x, PIECES[0]) else self.right(y)

    with pytest.raises(InputError, match="some are at left, others at right"), lockstep((Chooses(),)) as stops:
        list(stops)


def test_a_forward_may_end_where_others_go_on(network):
    """As that of a detector does on images without detections."""

    class Detects(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.mask = network, nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

        def forward(self, x):
            y = self.network(x)
            return y if torch.equal(x, PIECES[1]) else self.mask(y)

    with lockstep((Detects(),)) as stops:
        ended = {stop.name: [value is None for value in stop.values[0]] for stop in stops}
    masks = [ended.pop(name) for name in ("mask.0", "mask.2")]
    assert masks == [[False, True, False, False, False]] * 2
    assert ended and not any(map(any, ended.values()))


def test_as_many_images_wait_as_fit_into_the_memory(network):
    every = images_in_memory((network,), PIECES, 1.0)
    assert [len(piece) for piece in every] == [2] * 5
    # The most that waits of an image: 6 maps of 8×8 and the convolution's output before they are normalised.
    assert len(images_in_memory((network, network), PIECES, 1e-9)) == 1
    a_few = [len(images_in_memory((network,), PIECES, kilobytes * 1e-6)) for kilobytes in (8, 16, 24, 32, 64)]
    assert a_few == sorted(a_few) and a_few[0] < a_few[-1]
