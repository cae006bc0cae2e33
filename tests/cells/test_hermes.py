"""The HERMES fits against the published formulas, written out by hand in double precision."""

from __future__ import annotations

import math

import pytest
import torch

from aimc.cells import Hermes
from aimc.random import Key
from tests.helpers import assert_close
from tests.moments import assert_moments

R = (0.0, 0.001, 0.01, 0.05, 0.09449, 0.0945, 0.12, 0.1591, 0.16, 0.2, 0.3039, 0.3055, 0.31, 0.5, 0.8, 1.0)


def clip(x, low, high):
    return min(max(x, low), high)


def log(r):
    return math.log(max(r, 1e-7))


def exponent_mean(r):
    if r < 0.0945:
        return clip(-0.0387 * log(r) - 0.0182, 0.072, 0.13)
    return -0.0436 * r**2 - 0.0126 * r + 0.0736


def exponent_spread(r, parallel):
    if parallel == 2:
        if r < 0.3055:
            return clip(-0.0117 * log(r) - 0.0057, 0.0091, 0.04)
        return -0.0118 * r**2 + 0.0093 * r + 0.0073
    if r < 0.3039:
        return clip(-0.0120 * log(r) - 0.0023, 0.0124, 0.04)
    return -0.0165 * r**2 + 0.0116 * r + 0.0104


def read_amplitude(r, parallel):
    if parallel == 2:
        if r < 0.16:
            return clip(-0.0117 * log(r) - 0.0069, 0.015, 0.04)
        return 0.0069 * r**3 - 0.0280 * r**2 + 0.0211 * r + 0.0123
    if r < 0.1591:
        return clip(-0.0078 * log(r) + 0.0038, 0.0179, 0.04)
    return 0.0664 * r**3 - 0.1352 * r**2 + 0.0768 * r + 0.0088


def programming(r, parallel):
    c = {
        1: (0.15781817, 2.32443916, -2.16310839, 0.68841818),
        2: (0.16603222, 4.71806468, -8.48101252, 4.68961419),
    }[parallel]
    return c[0] + c[1] * r + c[2] * r**2 + c[3] * r**3


def column(function, *args):
    return torch.tensor([function(r, *args) for r in R], dtype=torch.float64)


@pytest.mark.parametrize("parallel, g_max, t0", [(1, 10.35, 200.0), (2, 20.7, 300.0)])
def test_fits(parallel, g_max, t0):
    cell = Hermes(parallel=parallel)
    assert (cell.g_max, cell.t0, cell.t_read) == (g_max, t0, 512e-9)
    # Unit full scale, so that r is exact and the breakpoints (which belong to the upper piece) are hit.
    unit = Hermes(parallel=parallel, g_max=1.0)
    r = torch.tensor(R, dtype=torch.float64)
    mean, spread = unit.drift_exponent(r)
    assert_close("mean exponent", mean, column(exponent_mean), atol=1e-12)
    assert_close("spread of the exponent", spread, column(exponent_spread, parallel), atol=1e-12)
    clock = math.log((3600 + t0 + 512e-9) / (2 * 512e-9))
    noise = unit.read_noise_std(r, 3600.0) / math.sqrt(clock)
    assert_close("read noise", noise, column(read_amplitude, parallel), atol=1e-12)
    std = cell.programming_std(g_max * r)
    assert_close("programming std, uS", std, column(programming, parallel), atol=1e-12)
    assert cell.log_age(3600.0) == pytest.approx(math.log((3600 + t0) / t0), rel=1e-12)


def test_spot_values():
    one, two = Hermes(parallel=1), Hermes(parallel=2)
    half = torch.tensor(0.5, dtype=torch.float64)
    assert float(one.programming_std(10.35 * half)) == pytest.approx(0.865313, abs=1e-6)
    assert float(two.programming_std(20.7 * half)) == pytest.approx(0.991013, abs=1e-6)
    assert float(one.drift_exponent(10.35 * half)[0]) == pytest.approx(0.0564, abs=1e-9)
    assert float(two.drift_exponent(20.7 * half)[1]) == pytest.approx(0.009, abs=1e-9)
    assert float(one.drift_exponent(10.35 * half)[1]) == pytest.approx(0.012075, abs=1e-9)
    assert [float(c.drift_exponent(0 * half)[0]) for c in (one, two)] == [0.13, 0.13]
    assert [float(c.drift_exponent(0 * half)[1]) for c in (one, two)] == [0.04, 0.04]


@pytest.mark.parametrize("parallel", [1, 2])
def test_pieces_meet(parallel):
    """The two pieces of each fit differ by less than the fit's own error where they meet."""
    for function, *args in ((exponent_mean,), (exponent_spread, parallel), (read_amplitude, parallel)):
        for r in (0.0945, 0.1591, 0.16, 0.3039, 0.3055):
            below, above = function(r - 1e-12, *args), function(r, *args)
            assert abs(below - above) < 2e-3


def test_full_scale_and_t0_follow_the_number_of_devices():
    for start, end, g_max, t0 in ((2, 1, 10.35, 200.0), (1, 2, 20.7, 300.0)):
        changed = Hermes(parallel=start).replace(parallel=end)
        assert (changed.g_max, changed.t0) == (g_max, t0)
        assert changed == Hermes(parallel=end) and Hermes.from_dict(changed.to_dict()) == changed
    assert Hermes(parallel=2, g_max=5.0).replace(parallel=1).g_max == 5.0


@pytest.mark.parametrize("parallel", [1, 2])
@pytest.mark.parametrize("r", [0.3, 0.8])
def test_devices_scatter_as_the_fits_say(parallel, r):
    """Monte Carlo over devices: what was written, its exponents, its noise after a day."""
    cell, day = Hermes(parallel=parallel), 86_400.0
    cells = cell.program(torch.full((200_000,), r * cell.g_max), Key(3))
    assert_moments("written", cells.conductance, r * cell.g_max, programming(r, parallel))
    assert_moments("exponents", cells.exponent, exponent_mean(r), exponent_spread(r, parallel))
    t0 = 200.0 if parallel == 1 else 300.0
    sigma = read_amplitude(r, parallel) * math.sqrt(math.log((day + t0 + 512e-9) / (2 * 512e-9)))
    noise = cell.read(cells, day, Key(5)) / cell.drift(cells, day) - 1
    assert_moments("read noise", noise, 0.0, sigma)
