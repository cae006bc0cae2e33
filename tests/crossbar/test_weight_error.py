"""The whole life of a matrix on phase-change memory: relative error at six times, with and without compensation."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from aimc.cells import PCM
from aimc.crossbar import from_conductance, to_conductance
from aimc.random import Key

SIZE = (1024, 1024)
DISTRIBUTIONS = {
    "gauss_0.25": lambda g: (torch.randn(SIZE, generator=g) * 0.25).clamp(-1, 1),
    "gauss_0.10": lambda g: (torch.randn(SIZE, generator=g) * 0.10).clamp(-1, 1),
    "uniform": lambda g: torch.rand(SIZE, generator=g) * 2 - 1,
}
TIMES = (1.0, 3600.0, 86400.0, 604800.0, 31536000.0)
HOUR, YEAR = 1, 4
# errors after programming and at the five times; factor at 1 h and 1 year; uncompensated error at 1 h and 1 year
PUBLISHED = {
    "gauss_0.25": (0.103, (0.132, 0.149, 0.168, 0.181, 0.214), (1.297, 2.023), (0.261, 0.517)),
    "gauss_0.10": (0.182, (0.237, 0.267, 0.302, 0.329, 0.391), (1.338, 2.163), (0.332, 0.566)),
    "uniform": (0.063, (0.080, 0.094, 0.111, 0.122, 0.149), (1.289, 1.997), (0.240, 0.507)),
}


def life(name: str, noise_from: str):
    """Errors after programming and over time, factors, uncompensated errors, for one chip."""
    cell, key = PCM(), Key(0)
    w = DISTRIBUTIONS[name](torch.Generator().manual_seed(0))
    cells = cell.program(to_conductance(w, cell), key)
    programmed = from_conductance(cells.conductance, cell)
    if noise_from == "programmed":
        cells = dataclasses.replace(cells, target=cells.conductance)

    def error(x):
        return float((x - w).norm() / w.norm())

    errors, factors, plain = [], [], []
    for time in TIMES:
        aged = from_conductance(cell.read(cells, time, key), cell)
        factors.append(float(programmed.abs().mean() / aged.abs().mean()))
        errors.append(error(factors[-1] * aged))
        plain.append(error(aged))
    return error(programmed), errors, factors, plain


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_published_errors(name):
    """The table was made with the read noise of the programmed conductance; so made, all of it comes out."""
    fresh, errors, factors, plain = life(name, "programmed")
    published = PUBLISHED[name]
    assert fresh == pytest.approx(published[0], rel=0.02)
    assert errors == pytest.approx(published[1], rel=0.02)
    assert (factors[HOUR], factors[YEAR]) == pytest.approx(published[2], rel=0.01)
    assert (plain[HOUR], plain[YEAR]) == pytest.approx(published[3], rel=0.01)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_errors_with_the_noise_of_the_target(name):
    """What aimc does, as in the published fit: a little more error where reset devices matter, never less."""
    _, errors, factors, plain = life(name, "target")
    published = PUBLISHED[name]
    within = [0.035 if (name, t) == ("gauss_0.10", 1.0) else 0.03 for t in TIMES]  # see docs/cells/pcm.md
    assert all(abs(e / p - 1) < w for e, p, w in zip(errors, published[1], within, strict=True))
    assert all(e > 0.995 * p for e, p in zip(errors, published[1]))
    assert (factors[HOUR], factors[YEAR]) == pytest.approx(published[2], rel=0.01)
    assert (plain[HOUR], plain[YEAR]) == pytest.approx(published[3], rel=0.015)
