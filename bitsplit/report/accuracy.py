"""95% intervals: of an accuracy, and of the difference between two on the same images."""

from statistics import NormalDist

import numpy as np

NORMAL_95 = NormalDist().inv_cdf(0.975)  # standard errors on either side, for 95%


def interval(percent: float, images: int) -> float:
    """Half width of the 95% interval of an accuracy measured on so many images (binomial), in points.

    >>> round(interval(80.0, images=10_000), 2)
    0.78
    """
    share = percent / 100
    return 100 * NORMAL_95 * (share * (1 - share) / images) ** 0.5


def paired_interval(differences: np.ndarray) -> float:
    """Half width of the 95% interval of the mean of differences (images,) between two networks, in points (Wald).

    A difference is that of right (1) and wrong (0), or of its means over several seeds.

    >>> round(paired_interval(np.array([1, 0, 0, -1, 1, 0, 0, 0, 0, 0])), 2)
    33.47
    """
    return float(100 * NORMAL_95 * np.std(differences) / len(differences) ** 0.5)
