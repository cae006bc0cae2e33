"""When has training stopped getting better? Rules that a warm start asks, pure functions of a list of values."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence

from aimc.config import Config

KEPT = 64
"""Values that a warm start remembers at most."""


class PlateauRule(Config):
    """Base. ``hit`` answers whether the values, one per epoch since the last hit, have reached a plateau."""

    @abc.abstractmethod
    def hit(self, values: Sequence[float], hits: int) -> bool:
        """Whether to move on.

        Args:
            values: since the last hit, oldest first.
            hits: so far.
        """


class LossRise(PlateauRule):
    """The last value is above the one before by more than ``rise``.

    Example:
        >>> LossRise().hit([1.0, 0.9], 0), LossRise().hit([1.0, 0.9, 0.95], 0)
        (False, True)
    """

    rise: float = 1e-4

    def hit(self, values: Sequence[float], hits: int) -> bool:
        return len(values) >= 2 and values[-1] - values[-2] > self.rise


class SlowProgress(PlateauRule):
    """At least ``count`` of the last ``window`` differences are above ``difference``.

    Example:
        >>> SlowProgress(window=3, count=2).hit([1.0, 0.8, 0.799, 0.798], 0)
        True
    """

    window: int = 5
    count: int = 2
    difference: float = -0.01

    def validate(self):
        self.require(1 <= self.window < KEPT, "window", f"is between 1 and {KEPT - 1}, got {self.window}")
        self.require(1 <= self.count <= self.window, "count", "is between 1 and window")

    def hit(self, values: Sequence[float], hits: int) -> bool:
        if len(values) < self.window + 1:
            return False
        last = values[-self.window - 1 :]
        return sum(b - a > self.difference for a, b in zip(last, last[1:])) >= self.count


class FirstThen(PlateauRule):
    """One rule for the first ``count`` hits, another one afterwards.

    Example:
        >>> FirstThen(count=1).hit([1.0, 1.1], 0), FirstThen(count=1).hit([1.0, 1.1], 1)
        (True, False)
    """

    first: PlateauRule = LossRise()
    then: PlateauRule = SlowProgress()
    count: int = 4

    def validate(self):
        self.require(self.count >= 0, "count", "must not be negative")

    def hit(self, values: Sequence[float], hits: int) -> bool:
        return (self.first if hits < self.count else self.then).hit(values, hits)


class SlopeTest(PlateauRule):
    """A straight line through the last ``window`` values does not fall, with the given confidence.

    The slope's upper bound ``b + q s_b`` is compared with ``-least`` per epoch, relative to the mean value: a plateau
    is where a fall of at least that much cannot be shown. q is the confidence's quantile of Student's t with ``window
    - 2`` degrees of freedom, so that on independent normal noise around a level it says so with that probability.

    Example:
        >>> SlopeTest(window=4).hit([1.0, 0.8, 0.6, 0.4], 0), SlopeTest(window=4).hit([1.0, 0.99, 1.01, 1.0], 0)
        (False, True)
    """

    window: int = 5
    confidence: float = 0.9
    least: float = 0.0

    def validate(self):
        self.require(3 <= self.window <= KEPT, "window", f"is between 3 and {KEPT}, got {self.window}")
        self.require(0.5 <= self.confidence < 1, "confidence", "is between 0.5 and 1")
        self.require(self.least >= 0, "least", "must not be negative")

    def hit(self, values: Sequence[float], hits: int) -> bool:
        from scipy.special import stdtrit

        n = self.window
        if len(values) < n:
            return False
        y = values[-n:]
        mean, centre = sum(y) / n, (n - 1) / 2
        square = sum((k - centre) ** 2 for k in range(n))
        slope = sum((k - centre) * v for k, v in enumerate(y)) / square
        rest = sum((v - mean - slope * (k - centre)) ** 2 for k, v in enumerate(y))
        error = math.sqrt(rest / (n - 2) / square)
        return slope + float(stdtrit(n - 2, self.confidence)) * error >= -self.least * abs(mean)
