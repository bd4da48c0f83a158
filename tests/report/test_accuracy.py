"""Intervals of an accuracy against scipy's."""

import numpy as np
import pytest
from scipy.stats import norm, sem, ttest_1samp

from bitsplit import report
from bitsplit.report.accuracy import jackknife_interval, jackknife_p, paired_interval
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


def test_the_jackknife_of_a_mean_is_students_test_on_the_means_of_the_blocks():
    values = np.random.default_rng(0).normal(0.3, 1, (50, 8))  # blocks of images
    without = (values.sum() - values.sum(axis=1)) / (values.size - 8)
    expected = ttest_1samp(values.mean(axis=1), 0)
    low, high = expected.confidence_interval()
    assert jackknife_interval(without) == pytest.approx((high - low) / 2)
    assert jackknife_p(values.mean(), without) == pytest.approx(expected.pvalue)


def test_networks_of_the_same_precision_are_level():
    assert jackknife_interval(np.zeros(50)) == 0 and jackknife_p(0.0, np.zeros(50)) == 1


def test_signs_of_a_change():
    texts = [signed(value) for value in (0.125, -0.125, 0.004, -0.004, 0.0)]
    assert texts == ["+0.12", "−0.12", "0.00", "0.00", "0.00"]
