"""Batch-norm statistics, measured and re-estimated, against their closed form."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitsplit.layers.batch_norm import (
    batch_norm_statistics,
    batch_norms,
    measure_batch_norm,
    measure_float_norms,
    reestimate_batch_norm,
    refit_batch_norm,
    set_batch_norm,
    shifted_batch_norm,
)
from bitsplit.settings import BatchNorm


def network_and_batches(count=4):
    """Two batch-norm layers in a row of operations, a dropout that must stay off, and one that keeps no statistics."""
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 3),
        nn.Dropout(0.5),
        nn.BatchNorm2d(4, momentum=0.3, affine=False),
        nn.ReLU(),
        nn.BatchNorm2d(4, track_running_stats=False),
    ).double()
    with torch.no_grad():
        for norm in (network[0], network[3]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        network[0].weight.uniform_(0.5, 1.5)
        network[0].bias.normal_()
    batches = [torch.randn(5 + k, 3, 6, 6, dtype=torch.float64) * (1 + k) + k for k in range(count)]
    return network.eval(), batches


def batch_moments(network, x):
    """Means and unbiased variances of the two layers' inputs, batch statistics in force, by hand."""
    result = []
    for _ in range(2):
        channels = x.movedim(1, 0).flatten(1)
        result.append((channels.mean(dim=1), channels.var(dim=1, correction=1)))
        if len(result) == 1:
            mean, variance = (v[:, None, None] for v in (channels.mean(dim=1), channels.var(dim=1, correction=0)))
            gain, shift = (v[:, None, None] for v in (network[0].weight, network[0].bias))
            x = F.conv2d((x - mean) / (variance + 1e-5).sqrt() * gain + shift, network[1].weight, network[1].bias)
    return result


def assert_statistics(statistics, expected):
    assert list(statistics) == ["0", "3"]
    for measured, moments in zip(statistics.values(), expected, strict=True):
        for part, value in zip(measured, moments, strict=True):
            torch.testing.assert_close(part, value.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.1, 0.35, 1.0])
def test_reestimation_is_the_moving_average(momentum):
    network, batches = network_and_batches()
    expected = list(batch_norm_statistics(network).values())
    for x in batches:
        new = batch_moments(network, x)
        expected = [
            tuple((1 - momentum) * old + momentum * now for old, now in zip(*pair, strict=True))
            for pair in zip(expected, new, strict=True)
        ]
    reestimate_batch_norm(network, batches, len(batches), momentum)
    assert_statistics(batch_norm_statistics(network), expected)


def averages(network, batches):
    moments = [batch_moments(network, x) for x in batches]
    return [tuple(torch.stack([m[k][part] for m in moments]).mean(dim=0) for part in range(2)) for k in range(2)]


def test_reestimation_without_momentum_is_the_plain_average():
    network, batches = network_and_batches()
    expected = averages(network, batches)
    reestimate_batch_norm(network, batches, len(batches), None)
    assert_statistics(batch_norm_statistics(network), expected)


def test_measuring_leaves_the_network_as_it_was():
    network, batches = network_and_batches()
    before, expected = batch_norm_statistics(network), averages(network, batches)
    state = copy.deepcopy(network.state_dict())
    assert_statistics(measure_batch_norm(network, batches, len(batches)), expected)
    assert_statistics(batch_norm_statistics(network), list(before.values()))
    assert all(torch.equal(values, state[name]) for name, values in network.state_dict().items())


def test_only_layers_with_running_statistics_count():
    network, _ = network_and_batches()
    assert list(batch_norms(network)) == ["0", "3"]


@pytest.mark.parametrize("momentum", [0.2, None])
@pytest.mark.parametrize("breaks", [False, True])
def test_modes_and_momenta_are_restored(momentum, breaks):
    def broken():
        yield from batches[:2]
        if breaks:
            raise OSError("half-way")

    network, batches = network_and_batches()
    network[3].train()
    parameters = copy.deepcopy(dict(network.named_parameters()))
    modes = [module.training for module in network.modules()]
    if breaks:
        with pytest.raises(OSError, match="half-way"):
            reestimate_batch_norm(network, broken(), 2, momentum)
    else:
        reestimate_batch_norm(network, broken(), 2, momentum)
    assert [module.training for module in network.modules()] == modes
    assert [network[k].momentum for k in (0, 3, 5)] == [0.1, 0.3, 0.1]
    assert all(torch.equal(p, parameters[name]) and p.grad is None for name, p in network.named_parameters())


def test_statistics_are_copies_and_can_be_set():
    network, batches = network_and_batches()
    before = batch_norm_statistics(network)
    copies = {name: tuple(part.clone() for part in parts) for name, parts in before.items()}
    reestimate_batch_norm(network, batches, len(batches), 0.5)
    assert_statistics(before, list(copies.values()))
    assert not torch.equal(network[0].running_mean, copies["0"][0])
    set_batch_norm(network, before)
    assert_statistics(batch_norm_statistics(network), list(copies.values()))


def test_shift_by_hand():
    def of(mean, variance):
        return {"bn": (torch.tensor(mean, dtype=torch.float64), torch.tensor(variance, dtype=torch.float64))}

    trained, floating = of([1.0, 2.0], [4.0, 9.0]), of([0.5, 1.0], [2.0, 3.0])
    mean, variance = shifted_batch_norm(trained, floating, of([0.75, 0.0], [1.0, 6.0]))["bn"]
    torch.testing.assert_close(mean, torch.tensor([1.25, 1.0], dtype=torch.float64))
    torch.testing.assert_close(variance, torch.tensor([2.0, 18.0], dtype=torch.float64))


def test_no_shift_where_nothing_changed_and_no_nan_where_nothing_varies():
    network, batches = network_and_batches()
    trained, measured = batch_norm_statistics(network), measure_batch_norm(network, batches, len(batches))
    assert_statistics(shifted_batch_norm(trained, measured, measured), list(trained.values()))
    dead = {name: (mean, torch.zeros_like(variance)) for name, (mean, variance) in measured.items()}
    for shifted in (shifted_batch_norm(trained, dead, dead), shifted_batch_norm(trained, measured, dead)):
        assert all(v.isfinite().all() and (v >= 0).all() for _, v in shifted.values())


@pytest.mark.parametrize("mode", ["none", "reestimate", "shift"])
def test_refitting_by_mode(mode):
    """Against the steps by hand, for a network that quantization has changed; what was measured before stays."""
    network, batches = network_and_batches()
    settings = BatchNorm(mode=mode, momentum=0.3)
    norms = measure_float_norms(network, settings, batches, len(batches))
    trained, floating = batch_norm_statistics(network), measure_batch_norm(network, batches, len(batches))
    assert (norms is None) == (mode != "shift")
    if norms:
        assert_statistics(norms.trained, list(trained.values()))
        assert_statistics(norms.measured, list(floating.values()))
    with torch.no_grad():
        network[1].weight.mul_(1.5)
    expected = copy.deepcopy(network)
    if mode == "reestimate":
        reestimate_batch_norm(expected, batches, len(batches), 0.3)
    elif mode == "shift":
        changed = measure_batch_norm(expected, batches, len(batches))
        set_batch_norm(expected, shifted_batch_norm(trained, floating, changed))
    for _ in range(1 if mode == "reestimate" else 2):  # a shift starts from the trained statistics each time
        refit_batch_norm(network, settings, batches, len(batches), norms)
    assert_statistics(batch_norm_statistics(network), list(batch_norm_statistics(expected).values()))
    if norms:
        assert_statistics(norms.trained, list(trained.values()))
        assert_statistics(norms.measured, list(floating.values()))


def test_a_network_without_batch_norm_reads_no_image():
    network, settings = nn.Conv2d(3, 4, 3), BatchNorm(mode="shift")
    assert measure_float_norms(network, settings, iter([None]), 1) is None
    refit_batch_norm(network, settings, iter([None]), 1, None)


class Counting(nn.Module):
    """A backbone with batch-norm and a head without; `twice` runs the backbone once more."""

    def __init__(self, twice: bool):
        super().__init__()
        self.backbone, self.head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Conv2d(4, 2, 1)
        self.twice, self.heads = twice, 0

    def forward(self, x):
        y = self.backbone(x)
        if self.twice:
            y = y + self.backbone(x.flip(0) * 2)
        self.heads += 1
        return self.head(y)


@pytest.mark.parametrize("twice, heads", [(False, 1), (True, 3)])
def test_what_follows_the_last_batch_norm_runs_once_only(twice, heads):
    torch.manual_seed(0)
    batches = list(torch.randn(3, 8, 3, 6, 6) + 1)
    network = Counting(twice)
    expected = copy.deepcopy(network).train()
    with torch.no_grad():
        for batch in batches:
            expected(batch)
    reestimate_batch_norm(network, batches, 3, momentum=0.1)
    assert network.heads == heads
    assert all(torch.equal(*pair) for pair in zip(network.buffers(), expected.buffers(), strict=True))
    assert not network.backbone[1]._forward_hooks


def test_a_channel_that_rounding_has_silenced_keeps_its_variance():
    one = torch.ones(2)
    trained, measured = {"norm": (one, 4 * one)}, {"norm": (2 * one, 5 * one)}
    quantized = {"norm": (torch.tensor([3.0, 2.0]), torch.tensor([10.0, 1e-9]))}
    mean, variance = shifted_batch_norm(trained, measured, quantized)["norm"]
    torch.testing.assert_close(mean, torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(variance, torch.tensor([8.0, 4.0]))


def test_a_frozen_layer_goes_on_using_its_own_statistics():
    class Frozen(nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(False)

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Frozen(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    network[1].running_mean.normal_(), network[1].running_var.uniform_(0.1, 9)
    batches = [torch.randn(8, 3, 6, 6) for _ in range(3)]
    expected = torch.stack([network[:3](batch).mean((0, 2, 3)) for batch in batches]).mean(dim=0)
    means = {name: mean for name, (mean, _) in measure_batch_norm(network, batches, 3).items()}
    torch.testing.assert_close(means["3"], expected.detach())
    torch.testing.assert_close(means["1"], network[1].running_mean)
