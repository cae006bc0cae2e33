"""The torch and the compiled response of every pulsed cell: equal bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aimc.cells import PULSED_CELLS, PulsedCell
from aimc.ops.pulsed_update import PulseTrain, Vectors, pulsed_update
from aimc.ops.pulsed_update.response import step
from aimc.random import Key, normals_at
from tests.helpers import assert_close
from tests.pulsed_cells import ALIKE, NO_POWERS, PULSED

SHAPE = (13, 21)


def compiled(cell: PulsedCell, w, p, up, xi):
    c, alike = cell.constants().numpy(), p.shape[0] == 1
    given, p, direction, noise = w.numpy(), p.numpy(), up.numpy(), xi.numpy()
    out = np.empty_like(given)
    for i, j in np.ndindex(*given.shape):
        a, b = (0, 0) if alike else (i, j)
        out[i, j] = step(cell.KIND, given[i, j], p, a, b, direction[i, j], noise[i, j], c)
    return torch.from_numpy(out)


def starts(cell: PulsedCell, p, seed: int):
    """Weights at the bounds, between them and, as before a first write, beyond."""
    share = torch.rand(*SHAPE, generator=torch.Generator().manual_seed(seed)) * 1.4 - 0.2
    share = torch.where((share * 20).round() % 5 == 0, share.round(), share)
    return p[..., 3] + (p[..., 2] - p[..., 3]) * share


@pytest.mark.parametrize("corrupt", [0.0, 0.3])
@pytest.mark.parametrize("name", PULSED)
def test_one_pulse(name, corrupt):
    cell = PULSED[name].replace(corrupt_probability=corrupt)
    p = cell.draw(SHAPE, Key(1))
    assert p.shape == (*SHAPE, len(cell.PARAMETERS)) and p.dtype == torch.float32
    moved = 0
    for k in range(2):
        w, up = starts(cell, p, k), torch.rand(*SHAPE, generator=torch.Generator().manual_seed(50 + k)) < 0.5
        xi = normals_at(Key(2, step=k), torch.arange(w.numel()).view(SHAPE))
        expected = cell.step(w, p, up, xi)
        assert_close("weight", compiled(cell, w, p, up, xi), expected, atol=0, rtol=0)
        assert bool(((expected >= p[..., 3]) & (expected <= p[..., 2])).all())
        moved += int((expected != w).sum())
    assert moved > 150


@pytest.mark.parametrize("name", PULSED)
def test_devices_that_are_all_alike(name):
    cell = PULSED[name]
    cell = cell.replace(**{n: 0.0 for n in cell.field_names() if n.endswith("_dtod") or n == "reference_std"})
    p = cell.draw(SHAPE, Key(1))
    assert p.shape == (1, 1, len(cell.PARAMETERS))
    w, up = starts(cell, p, 3), torch.arange(SHAPE[1]).expand(SHAPE) % 2 == 0
    xi = normals_at(Key(2), torch.arange(w.numel()).view(SHAPE))
    assert_close("weight", compiled(cell, w, p, up, xi), cell.step(w, p, up, xi), atol=0, rtol=0)


def test_the_ends_of_floating_point():
    """Steps without noise, powers of 0, and an exponential beyond its maximum."""
    for cell in (
        PULSED["pow"].replace(**NO_POWERS, pow_gamma=0.0),
        PULSED["exp_noise"].replace(**ALIKE, A_up=50.0, A_down=-3.0),
    ):
        p = cell.draw(SHAPE, Key(1))
        w = torch.linspace(-1, 1, SHAPE[0] * SHAPE[1]).view(SHAPE)
        for xi in (torch.zeros(SHAPE), torch.full(SHAPE, -6.0)):
            for up in (torch.ones(SHAPE, dtype=torch.bool), torch.zeros(SHAPE, dtype=torch.bool)):
                assert_close("weight", compiled(cell, w, p, up, xi), cell.step(w, p, up, xi), atol=0, rtol=0)


@pytest.mark.parametrize("write_noise", [0.0, 0.7])
@pytest.mark.parametrize("name", [n for n in PULSED if n not in PULSED_CELLS])
def test_whole_updates(name, write_noise):
    cell = PULSED[name].replace(corrupt_probability=0.1, write_noise_std=write_noise)
    p = cell.draw((5, 7), Key(3))
    generator = torch.Generator().manual_seed(0)
    vectors = Vectors(torch.randn(3, 7, generator=generator), torch.randn(3, 5, generator=generator))
    found = []
    for backend in ("reference", "cpu"):
        held = cell.snap(torch.full((5, 7), 0.1), p)
        w = held.clone() if write_noise else held
        pulsed_update(
            held, w, p, cell, vectors, 3 * cell.granularity, Key(4), PulseTrain(length=7), backend=backend
        )
        found.append((held, w))
    (held, w), (held_cpu, w_cpu) = found
    assert_close("held", held_cpu, held, atol=0, rtol=0)
    assert_close("read", w_cpu, w, atol=0, rtol=0)
    assert bool((held != w).any()) == bool(write_noise)
