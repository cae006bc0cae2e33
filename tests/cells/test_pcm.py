"""The published fit of phase-change memory: every number of its table, then the moments of its devices."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from aimc.cells import PCM
from aimc.random import Key
from tests.helpers import assert_close
from tests.moments import assert_moments

HOUR, DAY, WEEK, YEAR = 3600.0, 86400.0, 604800.0, 31536000.0
TIMES = (1.0, HOUR, DAY, YEAR)
N = 400_000

# g (uS): programming std (uS), mean and spread of the exponent, Q, read noise at 1 s, 1 h, 1 day, 1 year
SPOTS = {
    0.0: (0.26348, 0.10000, 0.04500, 0.200000, 0.8379, 0.9530, 1.0174, 1.1274),
    1.0: (0.34020, 0.07429, 0.03434, 0.071309, 0.29876, 0.33977, 0.36273, 0.40197),
    2.5: (0.44825, 0.06009, 0.02288, 0.039308, 0.16469, 0.18729, 0.19995, 0.22158),
    5.0: (0.60956, 0.04935, 0.01422, 0.025050, 0.10495, 0.11936, 0.12743, 0.14121),
    10.0: (0.86178, 0.04900, 0.00800, 0.015964, 0.06688, 0.07606, 0.08121, 0.08999),
    12.5: (0.95271, 0.04900, 0.00800, 0.013809, 0.05785, 0.06579, 0.07024, 0.07784),
    20.0: (1.08470, 0.04900, 0.00800, 0.010174, 0.04262, 0.04847, 0.05175, 0.05735),
    25.0: (1.05538, 0.04900, 0.00800, 0.008800, 0.03687, 0.04193, 0.04476, 0.04961),
}


def spot(column: int) -> torch.Tensor:
    return torch.tensor([row[column] for row in SPOTS.values()], dtype=torch.float64)


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


G = doubles(*SPOTS)
QUIET = PCM(programming_scale=0.0, drift_scale=0.0, read_noise_scale=0.0)


# ---------------------------------------------------------------- the table


def test_programming_error():
    assert_close("programming std", PCM().programming_std(G), spot(0), atol=1e-5)


def test_drift_exponent():
    mean, spread = PCM().drift_exponent(G)
    assert_close("mean exponent", mean, spot(1), atol=1e-5)
    assert_close("spread of the exponent", spread, spot(2), atol=1e-5)


def test_read_noise_amplitude():
    q = PCM().read_noise_std(G, HOUR) / math.sqrt(PCM().log_read(HOUR))
    assert_close("Q", q, spot(3), atol=1e-6)


@pytest.mark.parametrize("column, time", list(enumerate(TIMES)))
def test_read_noise(column, time):
    assert_close(f"read noise at {time} s", PCM().read_noise_std(G, time), spot(4 + column), atol=6e-5)


@pytest.mark.parametrize(
    "time, root",
    [(0.0, 4.18382), (1.0, 4.18965), (HOUR, 4.76475), (DAY, 5.08681), (WEEK, 5.27459), (YEAR, 5.63696)],
)
def test_read_clock(time, root):
    assert math.sqrt(PCM().log_read(time)) == pytest.approx(root, abs=1e-5)


@pytest.mark.parametrize(
    "time, high, low",
    [
        (1.0, 0.99761, 0.99513),
        (HOUR, 0.77513, 0.59461),
        (DAY, 0.66352, 0.43295),
        (WEEK, 0.60319, 0.35640),
        (YEAR, 0.49695, 0.24001),
    ],
)
def test_drift_factors(time, high, low):
    """Time counts from the end of programming, so one second already shows, and there is no jump at 20 s."""
    cell = PCM(programming_scale=0.0, drift_spread_scale=0.0, read_noise_scale=0.0)
    cells = cell.program(doubles(25.0, 1e-3), Key(0))
    assert_close("factor", cell.drift(cells, time) / cells.target, doubles(high, low), atol=1e-5)


def test_log_age():
    assert PCM().log_age(0.0) == 0.0
    assert PCM().log_age(HOUR) == pytest.approx(5.19850, abs=1e-5)
    assert PCM().log_age(YEAR) == pytest.approx(14.27091, abs=1e-5)


def test_programming_error_is_largest_below_full_scale():
    g = torch.linspace(0, 25, 100_001, dtype=torch.float64)
    std = PCM().programming_std(g)
    assert float(std.max()) == pytest.approx(1.08635, abs=1e-5)
    assert float(g[std.argmax()]) / 25 == pytest.approx(0.83752, abs=1e-5)


@pytest.mark.parametrize(
    "r, which, below, above",
    [  # the side on which the clip holds, and a value just on the other side that has left it
        (0.20452, 0, None, 0.049),
        (0.00762, 0, 0.1, None),
        (0.32890, 1, None, 0.008),
        (0.01704, 1, 0.045, None),
    ],
)
def test_breakpoints_of_the_exponent(r, which, below, above):
    values = [PCM().drift_exponent(doubles(25 * r * s))[which].item() for s in (0.999, 1.001)]
    clipped, moved = (values[0], values[1]) if below is not None else (values[1], values[0])
    assert clipped == (below if below is not None else above)
    assert moved != clipped and moved == pytest.approx(clipped, rel=4e-3)


def test_breakpoint_of_the_read_noise():
    cell = PCM()
    q = cell.read_noise_std(25 * doubles(0.00818 * 0.99, 0.00818 * 1.01), 0.0) / math.sqrt(cell.log_read(0.0))
    assert q[0] == pytest.approx(0.2, abs=1e-12)
    assert 0.19 < q[1] < 0.2


@pytest.mark.parametrize(
    "g, factor_hour, spread_hour, factor_year, spread_year",
    [
        (10.0, 0.77580, 0.04161, 0.50019, 0.11454),
        (5.0, 0.77585, 0.07401, 0.50478, 0.20501),
        (1.0, 0.69054, 0.17993, 0.39056, 0.52094),
    ],
)
def test_closed_form_of_the_drift_factor(g, factor_hour, spread_hour, factor_year, spread_year):
    cell = PCM()
    mean, spread = (float(v) for v in cell.drift_exponent(doubles(g)))
    for time, factor, relative in ((HOUR, factor_hour, spread_hour), (YEAR, factor_year, spread_year)):
        age = cell.log_age(time)
        assert math.exp(-mean * age + (spread * age) ** 2 / 2) == pytest.approx(factor, abs=2e-5)
        assert math.sqrt(math.exp((spread * age) ** 2) - 1) == pytest.approx(relative, abs=2e-5)


def test_full_scale_only_scales():
    """The fits are functions of g/g_max; the programming error is proportional to g_max."""
    large, small = PCM(g_max=50.0), PCM()
    assert_close("programming std", large.programming_std(2 * G), 2 * small.programming_std(G), rtol=1e-12)
    assert_close("exponent", large.drift_exponent(2 * G)[0], small.drift_exponent(G)[0], rtol=1e-12)
    assert_close("read noise", large.read_noise_std(2 * G, HOUR), small.read_noise_std(G, HOUR), rtol=1e-12)


# ---------------------------------------------------------------- the devices


def normal_tail(x: float) -> float:
    return 0.5 * math.erfc(x / math.sqrt(2))


def folded(mean: float, spread: float) -> tuple[float, float]:
    """Mean and std of ``|mean + spread * N(0, 1)|``."""
    a = mean / spread
    m = spread * math.sqrt(2 / math.pi) * math.exp(-a * a / 2) + mean * (1 - 2 * normal_tail(a))
    return m, math.sqrt(mean**2 + spread**2 - m**2)


def rectified(mean: float, spread: float) -> tuple[float, float]:
    """Mean and std of ``max(0, mean + spread * N(0, 1))``: where noise pushes below zero it stays at zero."""
    above = 1 - normal_tail(mean / spread)
    density = math.exp(-0.5 * (mean / spread) ** 2) / math.sqrt(2 * math.pi)
    m = mean * above + spread * density
    return m, math.sqrt((mean**2 + spread**2) * above + mean * spread * density - m**2)


def program(g: float, n: int = N, seed: int = 3, **changes):
    cell = PCM(**changes)
    return cell, cell.program(torch.full((n,), g), Key(seed))


@pytest.mark.parametrize("g", [12.5, 20.0, 25.0])
def test_programmed_conductance(g):
    _, cells = program(g)
    assert_moments(f"conductance of {g} uS", cells.conductance, g, SPOTS[g][0])


def test_reset_device_gets_programming_error_and_stays_positive():
    """The partner that holds nothing is written too: a rectified Gaussian, not an exact zero."""
    _, cells = program(0.0)
    sigma = 0.26348
    g = cells.conductance
    assert float(g.min()) == 0
    assert_moments("reset device", g, sigma / math.sqrt(2 * math.pi), sigma * math.sqrt(0.5 - 0.5 / math.pi))
    assert float(g.mean()) == pytest.approx(0.1049, rel=5e-3)
    assert float(g.std()) == pytest.approx(0.1535, rel=5e-3)
    assert_moments("share of zeros", (g == 0).double(), 0.5)


@pytest.mark.parametrize("r", [0.1, 0.3, 0.6, 0.8375])
def test_programming_error_follows_the_polynomial(r):
    _, cells = program(25 * r, seed=4)
    expected = -1.1731 * r**2 + 1.9650 * r + 0.26348
    assert_moments(f"error at {r} of full scale", cells.conductance - cells.target, 0.0, expected)


def test_exponents():
    for g, mean, spread in ((5.0, 0.04936, 0.01423), (0.0, 0.10043, 0.04403)):
        cell, cells = program(g)
        exact = folded(*(float(v) for v in cell.drift_exponent(torch.tensor(g))))
        assert exact == (pytest.approx(mean, abs=2e-5), pytest.approx(spread, abs=6e-5))
        assert_moments(f"exponent at {g} uS", cells.exponent, *exact)
        assert float(cells.exponent.min()) >= 0


def test_every_device_has_its_own_exponent():
    _, cells = program(25.0, n=1000)
    assert cells.exponent.unique().numel() > 990
    assert abs(float(torch.corrcoef(torch.stack([cells.exponent, cells.conductance]))[0, 1])) < 5 / math.sqrt(
        1000
    )


@pytest.mark.parametrize("g", [25.0, 5.0, 1.0])
@pytest.mark.parametrize("time", [HOUR, YEAR])
def test_moments_of_the_drift_factor(g, time):
    cell, cells = program(g, programming_scale=0.0)
    m, s = (float(v) for v in cell.drift_exponent(torch.tensor(g, dtype=torch.float64)))
    age = cell.log_age(time)

    def moment(k):  # E exp(-k |nu| age), the folding included
        x = k * age
        down = math.exp(-m * x + (s * x) ** 2 / 2) * normal_tail(s * x - m / s)
        return down + math.exp(m * x + (s * x) ** 2 / 2) * normal_tail(s * x + m / s)

    factor = cell.drift(cells, time) / cells.conductance
    assert_moments(f"factor of {g} uS", factor, moment(1), math.sqrt(moment(2) - moment(1) ** 2))


@pytest.mark.parametrize("r", [0.1, 0.5, 1.0])
def test_read_noise_of_devices(r):
    cell, cells = program(25 * r, programming_scale=0.0, drift_scale=0.0)
    q = min(0.0088 / r**0.65, 0.2)
    for time in (0.0, 25.0, HOUR, DAY, YEAR):
        sigma = q * math.sqrt(math.log((time + 20 + 250e-9) / (2 * 250e-9)))
        ratio = cell.read(cells, time, Key(5)) / cells.conductance
        assert_moments(f"read noise at {time} s", ratio, *rectified(1.0, sigma))


@pytest.mark.parametrize("time", [0.0, DAY])
def test_read_noise_of_a_reset_partner(time):
    """Nearly as large as the conductance itself: mean and spread of a normal that stops at zero."""
    cell, cells = program(0.0, drift_scale=0.0)
    sigma = 0.2 * math.sqrt(math.log((time + 20 + 250e-9) / (2 * 250e-9)))
    some = (
        cells.conductance > 0
    )  # the other half was pushed to zero by its programming error, and stays there
    ratio = (cell.read(cells, time, Key(5)) / cells.conductance)[some]
    assert_moments("reset partner", ratio, *rectified(1.0, sigma))
    assert float(cell.read(cells, time, Key(5))[~some].abs().max()) == 0


def test_read_noise_is_relative_to_the_drifted_conductance():
    cell, cells = program(25.0, programming_scale=0.0)
    noise = cell.read(cells, YEAR, Key(5)) / cell.drift(cells, YEAR) - 1
    assert_moments("read noise", noise, 0.0, SPOTS[25.0][7])
    assert float(cell.read(cells, YEAR, Key(5)).mean()) == pytest.approx(25 * 0.50019, rel=1e-3)


def test_read_noise_takes_the_target():
    """Programming error must not change the noise of a device relative to what it holds."""
    cell = PCM(drift_scale=0.0)
    exact = PCM(drift_scale=0.0, programming_scale=0.0)
    g = torch.full((1000,), 12.5)
    noisy = cell.program(g, Key(3))
    clean = exact.program(g, Key(3))
    assert float((noisy.conductance - clean.conductance).abs().mean()) > 0.5
    a = cell.read(noisy, HOUR, Key(5)) / noisy.conductance
    b = exact.read(clean, HOUR, Key(5)) / clean.conductance
    assert_close("relative noise", a, b, atol=1e-6)


def test_read_noise_never_makes_a_conductance_negative():
    cell, cells = program(1.0)
    assert float(cell.read(cells, YEAR, Key(5)).min()) == 0


def test_two_times_share_a_trajectory():
    cell, cells = program(25.0, n=N, programming_scale=0.0, drift_scale=0.0)
    noise = torch.stack([cell.read(cells, t, Key(5)) for t in (0.0, *TIMES)]).double()
    measured = torch.corrcoef(noise)
    clocks = [cell.log_read(t) for t in (0.0, *TIMES)]
    for i, early in enumerate(clocks):
        for j, late in enumerate(clocks):
            if i < j:
                expected = math.sqrt(early / late)
                assert abs(float(measured[i, j]) - expected) < 5 * (1 - expected**2) / math.sqrt(N), (i, j)


def test_noise_of_device_and_pair_partner_are_independent():
    cell = PCM(programming_scale=0.0, drift_scale=0.0)
    cells = cell.program(torch.full((2, N // 2), 25.0), Key(3))
    pair = cell.read(cells, HOUR, Key(5))
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / math.sqrt(N / 2)


@pytest.mark.parametrize(
    "effect", ["programming_scale", "drift_scale", "drift_spread_scale", "read_noise_scale"]
)
def test_switches(effect):
    """Each effect scales alone, and 0 switches it off."""
    scaled, plain = PCM(**{effect: 3.0}), PCM()

    def numbers(cell):
        mean, spread = cell.drift_exponent(G)
        return {
            "programming_scale": cell.programming_std(G),
            "drift_scale": mean,
            "drift_spread_scale": spread,
            "read_noise_scale": cell.read_noise_std(G, HOUR),
        }

    for name, value in numbers(plain).items():
        factor = 3.0 if name == effect or (effect == "drift_scale" and name == "drift_spread_scale") else 1.0
        assert_close(name, numbers(scaled)[name], factor * value, rtol=1e-12)
    cells = QUIET.program(torch.tensor([12.5, 0.0]), Key(0))
    assert_close("no effect at all", QUIET.read(cells, YEAR, Key(0)), torch.tensor([12.5, 0.0]))


def test_programmed_cells_cannot_be_exchanged():
    _, cells = program(1.0, n=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cells.exponent = torch.zeros(2)  # type: ignore[misc]
