"""Plateau rules on series made by hand, and how often the slope test is wrong."""

import numpy as np
import pytest
from scipy import stats

from aimc.algorithms import FirstThen, LossRise, SlopeTest, SlowProgress
from aimc.errors import AimcError


def test_loss_rise_looks_at_the_last_two_values():
    rule = LossRise(rise=0.1)
    assert [rule.hit(v, 0) for v in ([], [1.0], [1.0, 1.05], [1.0, 1.11], [1.0, 2.0, 1.9])] == [
        False, False, False, True, False,
    ]  # fmt: skip
    assert not LossRise().hit([1.0, 1.0001 - 1e-9], 0) and LossRise().hit([1.0, 1.00011], 0)


def test_slow_progress_counts_the_differences_of_its_window():
    rule = SlowProgress(window=5, count=2, difference=-0.01)
    falling = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    slow_twice = [1.0, 0.9, 0.895, 0.8, 0.797, 0.7]
    slow_once = [1.0, 0.9, 0.895, 0.8, 0.7, 0.6]
    assert (rule.hit(falling, 0), rule.hit(slow_twice, 0), rule.hit(slow_once, 0)) == (False, True, False)
    assert not rule.hit(slow_twice[1:], 0)  # five values are four differences
    assert not rule.hit(slow_twice[:3] + falling, 0)  # the slow ones are past
    # The published rule of the convolutional networks: two of the last five differences above 1e-4.
    rising = SlowProgress(difference=1e-4)
    assert rising.hit([1.0, 1.1, 0.9, 1.0, 0.8, 0.7], 0) and not rising.hit([1.0, 1.1, 0.9, 0.9, 0.8, 0.7], 0)


def test_first_then_changes_its_rule_after_the_hits():
    rule = FirstThen(first=LossRise(), then=SlowProgress(window=1, count=1), count=2)
    rise, slow = [1.0, 1.1], [1.0, 0.995]
    assert [rule.hit(rise, hits) for hits in (0, 1, 2)] == [True, True, True]
    assert [rule.hit(slow, hits) for hits in (0, 1, 2)] == [False, False, True]


def test_slope_test_by_hand():
    """Slope, its standard error and Student's quantile by the text book."""
    y = [5.0, 1.0, 0.9, 0.7, 0.8]
    line = stats.linregress(range(4), y[1:])
    for confidence in (0.6, 0.9, 0.99):
        bound = line.slope + stats.t.ppf(confidence, 2) * line.stderr
        assert SlopeTest(window=4, confidence=confidence).hit(y, 0) == (bound >= 0)
        least = -bound / np.mean(y[1:])
        if least > 0:
            assert SlopeTest(window=4, confidence=confidence, least=float(least) * 1.01).hit(y, 0)
            assert not SlopeTest(window=4, confidence=confidence, least=float(least) * 0.99).hit(y, 0)
    assert not SlopeTest(window=4).hit([1.0, 1.0, 1.0], 0)


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0, 2.0])
def test_how_often_the_slope_test_says_plateau(slope):
    """Noise around a falling line, ``slope`` standard deviations an epoch: the law is a noncentral t."""
    n, count = 5, 3000
    rng = np.random.default_rng(0)
    series = 10 - slope * np.arange(n) + rng.normal(size=(count, n))
    found = np.mean([SlopeTest(window=n, confidence=0.9).hit(list(v), 0) for v in series])
    deviation = 1 / np.sqrt(10)  # of the fitted slope: sum (k - 2)^2 = 10
    # At 0 the law is Student's.
    law = stats.nct(n - 2, -slope / deviation) if slope else stats.t(n - 2)
    expected = law.sf(-stats.t.ppf(0.9, n - 2))
    assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / count) + 1 / count
    assert expected == pytest.approx(0.9) if slope == 0 else (slope < 1 or expected < 0.1)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: SlowProgress(window=0), "window"),
        (lambda: SlowProgress(window=3, count=4), "count"),
        (lambda: SlowProgress(count=0), "count"),
        (lambda: FirstThen(count=-1), "count"),
        (lambda: SlopeTest(window=2), "window"),
        (lambda: SlopeTest(confidence=0.4), "confidence"),
        (lambda: SlopeTest(confidence=1.0), "confidence"),
        (lambda: SlopeTest(least=-0.1), "least"),
    ],
)
def test_wrong_fields_are_named(make, field):
    with pytest.raises(AimcError, match=f"field '{field}'"):
        make()
