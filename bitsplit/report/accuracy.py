"""95% intervals: of an accuracy or average precision, and of the difference between two on the same images."""

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
    33.38
    """
    return float(100 * NORMAL_95 * np.std(differences) / len(differences) ** 0.5)


def jackknife_interval(without: np.ndarray) -> float:
    """Half width of the 95% interval of a number of which `without` (B,) has the values without one of B equal blocks
    of images each (Student's t); of a difference, the differences of these values."""
    from scipy.stats import t  # takes longer to load than everything else here

    return float(t.ppf(0.975, len(without) - 1)) * _jackknife_error(without)


def jackknife_p(difference: float, without: np.ndarray) -> float:
    """How often two equally good networks are at least as far apart; `without` as in `jackknife_interval`."""
    from scipy.stats import t

    error = _jackknife_error(without)
    return float(2 * t.sf(abs(difference) / error, len(without) - 1)) if error else float(difference == 0)


def _jackknife_error(without: np.ndarray) -> float:
    return float(np.std(without) * (len(without) - 1) ** 0.5)
