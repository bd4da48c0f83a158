"""The geometry of the page's charts: positions along an axis in percent of its width, and outlines of histograms."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bitsplit.export.page.facts import InputRange

_MOST_DECADES = 8
_SHORTEST = 0.5  # percent of the axis: a bar that is there is seen
_APART = 31  # as many bars of a histogram stand apart; more are one outline
_STEP = 0.25  # between possible ends of the axis of ranges


@dataclass(frozen=True)
class ErrorAxis:
    """A logarithmic axis from 10^low to 10^high, whole decades.

    >>> axis = ErrorAxis.over([0.002, 0.03, 0.0])
    >>> axis, axis.position(0.01), axis.position(0.0)
    (ErrorAxis(low=-3, high=-1), 50.0, 0.0)
    >>> axis.ticks
    [(0.0, '0.1'), (50.0, '1'), (100.0, '10')]
    """

    low: int
    high: int

    @classmethod
    def over(cls, errors: Iterable[float]) -> "ErrorAxis":
        positive = [error for error in errors if error > 0] or [1.0]
        high = math.ceil(math.log10(max(positive)))
        low = min(math.floor(math.log10(min(positive))), high - 1)
        return cls(max(low, high - _MOST_DECADES), high)

    def position(self, error: float) -> float:
        """Percent of the way from left to right; nothing for no error."""
        if error <= 0:
            return 0.0
        return round(max(100 * (math.log10(error) - self.low) / (self.high - self.low), _SHORTEST), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Positions of the decades with their labels in percent; of many decades, every second one has its own."""
        decades = range(self.low, self.high + 1)
        step = 1 if len(decades) <= 4 else 2
        return [
            (self.position(10.0**decade) if decade > self.low else 0.0, "" if (self.high - decade) % step else label)
            for decade, label in ((decade, f"{10.0 ** (decade + 2):.{max(-decade - 2, 0)}f}") for decade in decades)
        ]


@dataclass(frozen=True)
class RangeAxis:
    """A linear axis from `low` ≤ 0 to 1, on which the greatest magnitude of each range, clipped or not, is 1.

    >>> axis = RangeAxis.over([InputRange(-1.0, 4.0, -1.0, 4.0, (-0.5, 5.0))])
    >>> axis, axis.span(0.0, 5.0, 5.0)
    (RangeAxis(low=-0.25), (20.0, 80.0))
    """

    low: float

    @classmethod
    def over(cls, ranges: Iterable[InputRange]) -> "RangeAxis":
        lows = [min(end, 0.0) / greatest(r) for r in ranges for end in (r.low, *(r.observed or ())[:1])]
        return cls(math.floor(min(lows, default=0.0) / _STEP) * _STEP)

    def span(self, start: float, end: float, unit: float) -> tuple[float, float]:
        """Where a bar between two values begins and how long it is, in percent, for a range of magnitude `unit`."""
        left, right = (100 * (value / unit - self.low) / (1 - self.low) for value in (start, end))
        return round(left, 2), round(max(right - left, _SHORTEST), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        values = [value for value in (-1.0, -0.5, 0.0, 0.5, 1.0) if value >= self.low]
        return [(self.span(value, value, 1.0)[0], f"{100 * value:.0f}%".replace("-", "−")) for value in values]


def greatest(values: InputRange) -> float:
    """The greatest magnitude in a range, observed or on the grid; 1 where all is zero."""
    return max(map(abs, (values.low, values.high, *(values.observed or ())))) or 1.0


def histogram_outline(counts: np.ndarray) -> str:
    """SVG path of a histogram in a box as wide as there are codes and 100 high: bars that stand apart, or one outline
    where there are many."""
    heights = [max(round(100 * count / counts.max()), 1) if count else 0 for count in counts.tolist()]
    if len(heights) <= _APART:
        return "".join(f"M{i}.1 100v-{h}h.8v{h}z" for i, h in enumerate(heights) if h)
    steps = np.diff([0, *heights, 0])
    return "M0 100" + "".join(f"v{-step}h1" if step else "h1" for step in steps[:-1]) + "V100z"
