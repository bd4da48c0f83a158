"""Intervals of an accuracy against scipy's."""

import numpy as np
import pytest
from scipy.stats import norm, sem

from bitsplit import report
from bitsplit.report.accuracy import paired_interval
from bitsplit.report.texts import signed


@pytest.mark.parametrize(("percent", "images"), [(85.6, 500), (50, 100), (0, 10), (99.9, 50_000)])
def test_interval_is_the_binomial_one(percent, images):
    share = percent / 100
    expected = 100 * norm.ppf(0.975) * (share * (1 - share) / images) ** 0.5
    assert report.interval(percent, images) == pytest.approx(expected)


@pytest.mark.parametrize("seeds", [1, 4])
def test_paired_interval_is_that_of_a_mean(seeds):
    """Of as many differences as there are images; scipy divides by n − 1."""
    differences = np.random.default_rng(seeds).integers(-1, 2, (seeds, 500)).mean(axis=0)
    expected = 100 * norm.ppf(0.975) * sem(differences, ddof=0)
    assert paired_interval(differences) == pytest.approx(expected)


def test_signs_of_a_change():
    texts = [signed(value) for value in (0.125, -0.125, 0.004, -0.004, 0.0)]
    assert texts == ["+0.12", "−0.12", "0.00", "0.00", "0.00"]
