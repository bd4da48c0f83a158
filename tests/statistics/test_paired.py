"""Moments of two networks' patches against their definition, and what the blended statistics ask for."""

import numpy as np
import pytest
import torch

from bitsplit.layout import by_column
from bitsplit.solver.objective import objective
from bitsplit.statistics.moments import LayerStats
from bitsplit.statistics.paired import PairedMoments, compensating

DOUBLE = torch.float64


@pytest.fixture
def patches():
    torch.manual_seed(0)
    x = torch.randn(2, 50, 6, dtype=DOUBLE).relu()
    return torch.randn(2, 3, 6, dtype=DOUBLE), x, x + 0.1 * torch.randn_like(x), torch.randn(2, 50, 3, dtype=DOUBLE)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("more", [False, True])
def test_moments_in_parts_are_those_of_all_patches(patches, centred, more):
    weight, x, read, missing = patches
    moments = PairedMoments(weight)
    for part in (slice(0, 7), slice(7, 7), slice(7, 50)):
        moments.add(x[:, part], read[:, part], missing[:, part] if more else None)
    target = x @ weight.mT + (missing if more else 0)
    assert torch.allclose(moments.mean_output[:, 0], target.mean(dim=1))
    error = moments.mean_error(weight).reshape(2, 3)
    assert torch.allclose(error, (target - read @ weight.mT).mean(dim=1))
    if centred:
        target, read = (values - values.mean(dim=1, keepdim=True) for values in (target, read))
    stats = moments.stats(centred)
    assert torch.allclose(stats.gram, read.mT @ read / 50) and torch.allclose(stats.cross, target.mT @ read / 50)
    assert torch.allclose(stats.energy, target.square().mean(dim=1)) and stats.n == 50


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("channels", [slice(None), slice(1)], ids=["all", "one"])
def test_inputs_far_from_zero_keep_their_digits(patches, centred, channels):
    """In raw counts of a sensor, say: against the same in double precision, from which float32 sums were far."""
    weight, x, read, _ = patches
    for values in (x, read):
        values[..., channels] += 8000
    exact, moments = PairedMoments(weight), PairedMoments(weight.float())
    for part in (slice(0, 7), slice(7, 50)):
        exact.add(x[:, part], read[:, part])
        moments.add(x[:, part].float(), read[:, part].float())
    for name in ("gram", "cross", "energy"):
        expected, found = (getattr(some.stats(centred), name) for some in (exact, moments))
        assert (found.double() - expected).abs().max() < 0.01 * expected.abs().max(), name
    assert torch.allclose(moments.mean_error(weight.float()).double(), exact.mean_error(weight), atol=0.02)


@pytest.mark.parametrize("share, damping", [(0.0, 0.0), (0.5, 0.0), (0.5, 0.1), (1.0, 0.0)])
def test_compensation_is_least_squares_towards_the_blended_target(patches, share, damping):
    weight, x, read, _ = patches
    moments = PairedMoments(weight)
    moments.add(x, read)
    stats = compensating(moments.stats(False), weight, share, damping)
    for g in range(2):
        # Damping is as if every input were seen a little more, alone, with the weight's own output.
        extra = np.sqrt(50 * damping * (read[g].square().mean(dim=0)).mean().item()) * np.eye(6)
        rows = np.concatenate([read[g].numpy(), extra])
        target = (read[g] + share * (x[g] - read[g])).numpy() @ weight[g].T.numpy()
        target = np.concatenate([target, extra @ weight[g].T.numpy()])
        best = np.linalg.lstsq(rows, target, rcond=None)[0]
        assert np.allclose(torch.linalg.solve(stats.gram[g], stats.cross[g].T).numpy(), best)


def test_full_compensation_measures_the_error_against_the_other_networks_output(patches):
    weight, x, read, _ = patches
    moments = PairedMoments(weight)
    moments.add(x, read)
    stats: LayerStats = moments.stats(False)
    other = weight + 0.1
    squared = (x @ weight.mT - read @ other.mT).square().mean(dim=1)
    one = torch.ones((), dtype=DOUBLE)
    for g in range(2):
        value = objective(other[g : g + 1], one, stats.gram[g : g + 1], stats.cross[g : g + 1])
        assert torch.allclose(value[0] + stats.energy[g], squared[g])


def test_values_by_channel_lie_at_the_columns_of_their_channel():
    rows = torch.zeros(2, 3, 2 * 4)  # 2 groups of 2 channels with 4 taps each
    assert by_column(torch.tensor([1.0, 2, 3, 4]).reshape(4, 1, 1), rows).tolist() == [
        [[1.0] * 4 + [2.0] * 4],
        [[3.0] * 4 + [4.0] * 4],
    ]
    assert by_column(torch.tensor(5.0), rows).item() == 5
