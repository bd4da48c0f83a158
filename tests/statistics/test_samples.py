"""Samples of the values that layers read: how many, which, and how they are pooled."""

import pytest
import torch
from convolutions import Block, feature_maps
from torch import nn

from bitsplit.statistics.samples import InputSamples, collect_samples


@pytest.mark.parametrize("asked, count", [(50, 1000), (3999, 1000), (8000, 2000), (10**7, None)])
def test_samples_are_input_values_with_the_extremes_of_all(asked, count):
    """As many values as asked for over all four channels, but at least 1,000 a channel, where there are as many."""
    network, batches = Block().double(), feature_maps(3, 3, 2, side=20)
    layers = {name: network.get_submodule(name) for name in ("stem", "a")}
    samples = collect_samples(network, layers, batches, len(batches), asked, 1000, seed=0)
    inputs = {"stem": torch.cat(batches), "a": network.stem(torch.cat(batches)).relu().detach()}
    assert set(samples) == set(inputs)
    for name, x in inputs.items():
        (sample,) = samples[name]
        vectors, values = x.movedim(1, -1).reshape(-1, 4), sample.values
        assert values.shape[1] == 4
        assert torch.cdist(values, vectors).amin(dim=1).max() < 1e-7
        assert sample.low == pytest.approx(x.min().item(), abs=1e-12)
        assert sample.high == pytest.approx(x.max().item(), abs=1e-12)
        if count:
            assert count <= len(values) < count + len(batches)
        else:
            assert values.shape == vectors.shape


def test_few_values_a_channel_are_all_taken():
    network, batches = Block().double(), feature_maps(2, 1)
    sample = collect_samples(network, {"stem": network.stem}, batches, len(batches), 50, 1000, seed=0)["stem"][0]
    vectors = torch.cat(batches).movedim(1, -1).reshape(-1, 4)
    assert torch.equal(sample.values, vectors)


def test_a_linear_layer_has_a_thousand_values_of_each_feature():
    batches = [torch.randn(700, 60, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    network = nn.Sequential(nn.Linear(60, 2))
    sample = collect_samples(network, {"0": network[0]}, batches, len(batches), 6000, 1000, seed=0)["0"][0]
    assert sample.values.shape == (1000, 60)
    more = collect_samples(network, {"0": network[0]}, batches, len(batches), 90_000, 1000, seed=0)["0"][0]
    assert more.values.shape == (1500, 60)


def test_samples_are_uniform_over_batches_images_and_positions():
    index = torch.arange(6 * 1600.0).reshape(6, 1, 40, 40)
    network = nn.Sequential(nn.Conv2d(1, 1, 1))
    values = [
        collect_samples(network, {"0": network[0]}, index.split(2), 3, 1200, 1000, seed)["0"][0].values.flatten()
        for seed in range(20)
    ]
    drawn = torch.cat(values)
    assert not torch.equal(values[0], values[1])
    assert len(drawn) == 20 * 1200
    counts = torch.bincount((drawn // 1600).long(), minlength=6)
    assert ((counts - 4000).abs() < 5 * 4000**0.5).all()
    rows, columns = (torch.bincount((drawn // d % 40).long(), minlength=40) for d in (40, 1))
    assert ((rows - 600).abs() < 5 * 600**0.5).all() and ((columns - 600).abs() < 5 * 600**0.5).all()


def test_each_call_of_a_layer_has_samples_of_its_own():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.a(x).sum() + self.a(9 - x[..., ::2, ::2]).sum()

    network, batches = Twice(), [torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    first, second = collect_samples(network, {"a": network.a}, batches, 3, 100, 1, seed=0)["a"]
    assert first.values.shape == second.values.shape == (27, 4)  # 100 / 4 channels, rounded up in each batch
    assert first.values.max() <= first.high <= 1 and second.values.min() >= second.low >= 8


def test_pooled_samples():
    parts = [InputSamples(torch.tensor([[1.0], [2.0]]), -3, 4), InputSamples(torch.tensor([[5.0]]), -1, 9)]
    pooled = InputSamples.pooled(parts)
    assert pooled.values.tolist() == [[1], [2], [5]] and (pooled.low, pooled.high) == (-3, 9)
