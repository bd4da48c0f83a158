"""Which tensors layers read: shared ones, changes in place, several calls, and the order of all."""

import pytest
import torch
import torch.nn.functional as F
from convolutions import Block, Pyramid, Sometimes, feature_maps
from small_networks import Odd, has_hooks
from torch import nn

from bitsplit.statistics.reads import measure_reads


@pytest.mark.parametrize(
    "change, shared",
    [
        (lambda x: x, True),
        (lambda x: x.mul_(2), False),
        (lambda x: F.relu(x, inplace=True), False),
        (lambda x: (x[:1].add_(1), x)[1], False),
        (lambda x: x * 2, False),
    ],
    ids=["the same tensor", "multiplied in place", "relu in place", "changed through a view", "a new tensor"],
)
@pytest.mark.parametrize("size", [1, 5])
def test_reads_of_the_down_sampling_convolution(change, shared, size):
    reads = measure_reads(Block(change).double(), feature_maps(size)[0])
    assert list(reads) == ["stem", "a", "b", "down"]  # the order of the calls
    tensors = {name: layer.tensors for name, layer in reads.items()}
    assert (tensors["down"] == tensors["a"]) == shared
    assert len(set(tensors.values())) == (3 if shared else 4)
    assert all(layer.shares == (1.0,) for layer in reads.values())


def test_changes_in_place_of_inference_tensors_go_unnoticed():
    with torch.inference_mode():
        reads = measure_reads(Block(lambda x: x.mul_(2)).double(), feature_maps(2)[0])
        apart = measure_reads(Block(lambda x: x * 2).double(), feature_maps(2)[0])
    assert reads["down"].tensors == reads["a"].tensors
    assert apart["down"].tensors != apart["a"].tensors


def test_layers_share_reads_where_they_read_the_same_tensors_call_by_call():
    reads = measure_reads(Pyramid().double(), feature_maps(2)[0])
    assert reads["a"].tensors == reads["b"].tensors and len(set(reads["a"].tensors)) == 2
    assert reads["c"].tensors == reads["a"].tensors[1:]
    assert reads["a"].shares == pytest.approx((64 / 73, 9 / 73)) == reads["b"].shares
    assert reads["c"].shares == (1.0,)


@pytest.mark.parametrize("sign, calls", [(1, 2), (-1, 1)])
def test_calls_are_those_of_the_one_forward(sign, calls):
    reads = measure_reads(Sometimes().double(), sign * torch.ones(1, 4, 6, 6, dtype=torch.float64))
    assert {name: len(layer.tensors) for name, layer in reads.items()} == {"a": 2, "b": 2, "c": calls}
    assert sum(reads["c"].shares) == pytest.approx(1)
    if calls == 2:  # the coarse level, then the fine one
        assert reads["c"].tensors == reads["a"].tensors[::-1]


def test_modules_that_share_a_weight_are_one_layer_of_all_their_calls():
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)).double()
    network[2].weight = network[0].weight
    reads = measure_reads(network, feature_maps(2)[0])
    assert list(reads) == ["0"] and len(set(reads["0"].tensors)) == 2
    assert reads["0"].shares == pytest.approx((0.8, 0.2))


def test_a_new_tensor_in_the_place_of_a_dead_one_is_another():
    """Python gives the identity of a tensor that is gone to the next one."""

    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            for _ in range(50):
                x = self.a(x)  # nothing holds what the call before read
            return x

    reads = measure_reads(Repeated(), torch.ones(2, 4))
    assert len(set(reads["a"].tensors)) == 50


class Lent(nn.Module):
    """A weight that is used elsewhere, one whose shape and type are asked for, and an addition that is none."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        x = self.norm(self.first(x)) + self.norm(
            self.second(x.to(self.second.weight.dtype)[:, : self.second.weight.shape[1]])
        )
        return torch.add(self.third(x) @ self.first.weight.t(), x, alpha=0.1)


def test_weights_and_norms_used_elsewhere_too():
    reads = measure_reads(Lent().eval(), torch.ones(2, 4))
    assert {name: read.lent for name, read in reads.items()} == {"first": True, "second": False, "third": False}
    assert {name: read.shared_norm for name, read in reads.items()} == {"first": True, "second": True, "third": False}
    assert reads["third"].shortcut is None


class TwoStems(nn.Module):
    """Two layers read parts of the image, one a smaller image, one the image beside features."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.left, self.right, self.small = (nn.Conv2d(i, 2, 3, padding=1, padding_mode="reflect") for i in (1, 3, 4))
        self.mixed, self.last = nn.Conv2d(8, 4, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        left, right = (x * self.scale).split([1, 3], dim=1)
        features = self.left(left) + self.right(right)
        features = self.mixed(torch.cat([x, features, features], dim=1))
        return self.last(torch.cat([F.avg_pool2d(features, 2), self.small(F.avg_pool2d(x, 2))], dim=1))


def test_what_no_layer_had_a_part_in_is_the_image():
    reads = measure_reads(TwoStems().double(), feature_maps(2)[0])
    assert {name for name, read in reads.items() if read.image} == {"left", "right", "small"}
    assert all(read.plain for read in reads.values())


class Doubling(nn.Conv2d):
    def forward(self, x):
        return super().forward(x * 2)


class Twice(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) - super().forward(-x)


class Cutting(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, -1, -1)))


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda _, args: args[0] * 2)
    return layer


def patched(layer: nn.Module) -> nn.Module:
    own = layer.forward
    layer.forward = lambda x: own(x * 2)
    return layer


@pytest.mark.parametrize(
    "layer, plain",
    [
        (lambda: nn.Conv2d(4, 4, 3), True),
        (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), True),
        (lambda: Cutting(4, 4, 3), True),
        (lambda: Doubling(4, 4, 3), False),
        (lambda: Twice(4, 4, 3), False),
        (lambda: hooked(nn.Conv2d(4, 4, 3)), False),
        (lambda: patched(nn.Conv2d(4, 4, 3)), False),
    ],
    ids=["torch's", "padding mode", "cuts", "doubles", "calls twice", "hook", "patched"],
)
def test_a_layer_is_plain_where_it_reads_the_values_that_it_is_given(layer, plain):
    reads = measure_reads(nn.Sequential(nn.Conv2d(4, 4, 1), layer()).double(), feature_maps(2)[0])
    assert reads["1"].plain == plain


def test_layers_that_are_not_called_are_left_out_and_nothing_stays_behind():
    network = Odd().double()
    assert list(measure_reads(network, feature_maps(2)[0])) == ["good"]
    assert not has_hooks(network)
    with pytest.raises(RuntimeError):
        measure_reads(network, feature_maps(2, channels=3)[0])
    assert not has_hooks(network)
