"""95% intervals of an accuracy."""

from collections.abc import Sequence
from statistics import NormalDist, stdev

_CONFIDENCE = 0.975  # two-sided 95%
NORMAL_95 = NormalDist().inv_cdf(_CONFIDENCE)  # standard errors on either side


def interval(percent: float, images: int) -> float:
    """Half width of the 95% interval of an accuracy measured on so many images (binomial), in points.

    >>> round(interval(80.0, images=10_000), 2)
    0.78
    """
    share = percent / 100
    return 100 * NORMAL_95 * (share * (1 - share) / images) ** 0.5


def seeds_interval(percents: Sequence[float], images: int) -> float:
    """Half width of the 95% interval of the mean accuracy of several seeds (Student's t), in points.

    One seed, or seeds that all agree to the image, say nothing about their spread: then the binomial interval.
    """
    if len(set(percents)) == 1:
        return interval(percents[0], images)
    from scipy.stats import t  # takes longer to load than everything else here, and few reports need it

    count = len(percents)
    return float(t.ppf(_CONFIDENCE, count - 1)) * stdev(percents) / count**0.5
