"""Wire resistance: published spot values, the exact ladder against Kirchhoff, and how far the fast form is off."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import aimc
from aimc.crossbar import Layout, TileSize
from aimc.errors import AimcError
from aimc.periphery import IRDrop, solve_ladder
from tests.helpers import assert_close


@pytest.mark.parametrize(
    "weighted, load, coefficient",
    [
        (10.0, 0.00896, 0.004464),
        (50.0, 0.0448, 0.022003),
        (100.0, 0.0896, 0.043230),
        (200.0, 0.1792, 0.083465),
    ],
)
def test_spot_values(weighted, load, coefficient):
    a = IRDrop().load(512, torch.tensor(weighted, dtype=torch.float64))
    assert float(a) == pytest.approx(load, abs=1e-7)
    assert float(IRDrop.coefficient(a)) == pytest.approx(coefficient, abs=1e-6)
    assert float(IRDrop(scale=5.0).load(512, torch.tensor(weighted))) == pytest.approx(5 * load, rel=1e-5)


def test_profile():
    expected = torch.tensor([1 - (1 - j / 8) ** 2 for j in range(8)], dtype=torch.float64)
    assert_close("profile", IRDrop.profile(8, dtype=torch.float64), expected, atol=1e-12)
    assert float(IRDrop.profile(8)[0]) == 0, "the row nearest to the converter loses nothing"


def kirchhoff(g, v, r):
    """One column by nodal analysis, every branch written down: device j from row voltage v_j to node j, wire from
    node j to node j - 1, node -1 at zero volts. Conductances in siemens, result in ampere."""
    n = len(g)
    y, current = np.zeros((n, n)), np.zeros(n)
    for j in range(n):
        y[j, j] += g[j]
        current[j] += g[j] * v[j]
        y[j, j] += 1 / r
        if j > 0:
            y[j - 1, j - 1] += 1 / r
            y[j, j - 1] -= 1 / r
            y[j - 1, j] -= 1 / r
    u = np.linalg.solve(y, current)
    return u[0] / r


@pytest.mark.parametrize("r", [0.35, 50.0, 2e4])
def test_ladder_obeys_kirchhoff(r):
    generator = torch.Generator().manual_seed(0)
    g = torch.rand(5, 17, generator=generator, dtype=torch.float64) * 25
    v = torch.randn(3, 17, generator=generator, dtype=torch.float64) * 0.2
    expected = [[1e6 * kirchhoff(gi.numpy() * 1e-6, vi.numpy(), r) for gi in g] for vi in v]
    assert_close("current, uA", solve_ladder(g, v, r), torch.tensor(expected), rtol=1e-9, atol=1e-12)


def test_ladder_closed_forms():
    one = solve_ladder(torch.tensor([[25.0]]).double(), torch.tensor([[0.2]], dtype=torch.float64), 1000.0)
    assert float(one) == pytest.approx(1e6 * 0.2 / (1 / 25e-6 + 1000), rel=1e-12)
    # Only the far device of three conducts: three wires in series with it.
    far = solve_ladder(
        torch.tensor([[0.0, 0.0, 25.0]]).double(), torch.full((1, 3), 0.2, dtype=torch.float64), 1000.0
    )
    assert float(far) == pytest.approx(1e6 * 0.2 / (1 / 25e-6 + 3000), rel=1e-12)
    thin = solve_ladder(
        torch.tensor([[25.0, 5.0]]).double(), torch.tensor([[0.2, -0.1]], dtype=torch.float64), 1e-9
    )
    assert float(thin) == pytest.approx(0.2 * 25 - 0.1 * 5, rel=1e-9)


@pytest.mark.parametrize(
    "g, v, r",
    [((2, 3), (1, 4), 1.0), ((3,), (1, 3), 1.0), ((2, 3), (1, 3), 0.0), ((2, 3), (1, 3), float("nan"))],
)
def test_ladder_refuses_nonsense(g, v, r):
    with pytest.raises(AimcError):
        solve_ladder(torch.ones(g), torch.ones(v), r)


@pytest.mark.parametrize(
    "start, stop, exact, fast", [(0, 128, 0.52, 0.24), (128, 256, 1.11, 0.56), (0, 256, 0.82, 0.79)]
)
def test_fast_form_against_the_ladder(start, stop, exact, fast):
    """Good for activity spread evenly, two times too small where it is clustered; far rows lose more than near ones."""
    rows, full_scale, r = 256, 5.0, 0.35
    # The quoted figures leave the weights open; this mean magnitude is the one at which all rows lose 0.82 %.
    w = 2 * 0.211 * torch.rand(32, rows, generator=torch.Generator().manual_seed(0))
    x = torch.zeros(1, rows)
    x[:, start:stop] = 1
    ideal = (x @ w.T).double()
    lost = 1 - solve_ladder(w * full_scale, x, r) / (ideal * full_scale)
    assert 100 * float(lost.mean()) == pytest.approx(exact, rel=0.04)
    ir = IRDrop(conductance=1 / (r * full_scale * 1e-6))
    assert ir.conductance == pytest.approx(IRDrop().conductance, rel=1e-6)
    drop = ir.coefficient(ir.load(rows, x @ w.T)) * (x @ (w * ir.profile(rows)).T) / (x @ w.T)
    assert 100 * float(drop.mean()) == pytest.approx(fast, rel=0.04)


@pytest.mark.parametrize("rows", [12, 5])
@torch.no_grad()
def test_a_layer_loses_what_the_formula_says(rows):
    """Per row tile, in normalised units, in the order of the rows; the wire is as long as the rows in use."""
    torch.manual_seed(0)
    digital = nn.Linear(12, 3).double()
    ir = IRDrop(scale=2000.0)
    hardware = aimc.presets.ideal().replace(**{"tile.rows": rows}, ir_drop=ir)
    net = aimc.convert(digital, hardware).eval()
    x = torch.randn(4, 12, dtype=torch.float64)
    expected = torch.zeros(4, 3, dtype=torch.float64) + digital.bias
    layout = Layout.of(TileSize(rows=rows), outputs=3, channels=12)
    for a, b in layout.row_splits:
        n = b - a
        for i in range(3):
            s = float(digital.weight[i, a:b].abs().max())
            w = digital.weight[i, a:b] / s
            for k in range(4):
                part = x[k, a:b]
                load = n * 2000.0 / 571428.57 * float((w.abs() * part.abs()).sum())
                c = load * (0.05 * load**2 - 0.2 * load + 0.5)
                lost = sum(float(w[j] * part[j]) * (1 - (1 - j / n) ** 2) for j in range(n))
                expected[k, i] += s * (float((w * part).sum()) - c * lost)
    y = net(x)
    assert_close("output", y, expected, atol=1e-9)
    assert float((y - digital(x)).abs().max()) > 1e-3


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_heavy_load_never_takes_more_than_there_is(backend):
    """The cubic alone turns a column of 512 full devices negative at ten times the standard load: -0.9 of the ideal."""
    assert IRDrop.coefficient(torch.tensor([2.8, 3.0, 1e3])).tolist() == pytest.approx(
        [0.9296, 1.0, 1.0], abs=1e-4
    )
    hardware = aimc.presets.ideal()
    shares = []
    for scale in (1.0, 5.0, 8.0, 10.0, 50.0):
        layer = nn.Linear(512, 1, bias=False)
        nn.init.ones_(layer.weight)
        net = aimc.convert(
            layer, hardware.replace(ir_drop=IRDrop(scale=scale)), seed=0, backend=backend
        ).eval()
        shares.append(float(net(torch.ones(1, 512)).detach()) / 512)
    assert shares[0] == pytest.approx(0.872, abs=2e-3) and shares[1] == pytest.approx(0.535, abs=2e-3)
    assert all(a >= b > 0.3 for a, b in zip(shares, shares[1:]))
