"""Intervals of an accuracy against scipy's."""

import numpy as np
import pytest
from scipy.stats import norm, sem, t

from bitsplit import report
from bitsplit.report.accuracy import seeds_interval
from bitsplit.report.texts import signed


@pytest.mark.parametrize(("percent", "images"), [(85.6, 500), (50, 100), (0, 10), (99.9, 50_000)])
def test_interval_is_the_binomial_one(percent, images):
    share = percent / 100
    expected = 100 * norm.ppf(0.975) * (share * (1 - share) / images) ** 0.5
    assert report.interval(percent, images) == pytest.approx(expected)


def test_interval_over_seeds_is_students():
    values = [80.1, 80.9, 79.7, 80.2]
    low, high = t.interval(0.95, df=3, loc=np.mean(values), scale=sem(values))
    assert seeds_interval(values, 10_000) == pytest.approx((high - low) / 2)


@pytest.mark.parametrize("values", [[80.0], [80.0, 80.0, 80.0]])
def test_without_a_spread_of_seeds_the_interval_is_the_binomial_one(values):
    assert seeds_interval(values, 10_000) == report.interval(80.0, 10_000)


def test_signs_of_a_change():
    texts = [signed(value) for value in (0.125, -0.125, 0.004, -0.004, 0.0)]
    assert texts == ["+0.12", "−0.12", "0.00", "0.00", "0.00"]
