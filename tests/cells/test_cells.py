"""What every cell owes: pure functions of key and time, faults that stay, and the smaller cells' own numbers."""

from __future__ import annotations

import math

import pytest
import torch

from aimc.cells import PCM, Cell, Faults, Hermes, Ideal, SingleExponentPCM, TabulatedPCM
from aimc.cells.base import LOG_RANGE, brownian
from aimc.errors import AimcError
from aimc.random import Key
from tests.helpers import assert_close
from tests.moments import assert_moments

HOUR, DAY, YEAR = 3600.0, 86400.0, 31536000.0
TABLE = TabulatedPCM(conductance=(1, 5, 25), exponent_mean=(0.1, 0.06, 0.05), exponent_std=(0.04, 0.02, 0.01))
CELLS = {
    "pcm": PCM(),
    "hermes1": Hermes(parallel=1),
    "hermes2": Hermes(parallel=2),
    "tabulated": TABLE,
    "single_exponent": SingleExponentPCM(),
    "ideal": Ideal(),
}
DRIFTING = [name for name, cell in CELLS.items() if cell.drifts]
N = 200_000


def targets(cell: Cell, n: int) -> torch.Tensor:
    g = torch.linspace(0, 1, n) * cell.g_max
    return (
        torch.stack([g, g.flip(0)])
        if cell.devices == 2
        else (2 * torch.linspace(0, 1, n) - 1)[None] * cell.g_max
    )


# ---------------------------------------------------------------- every cell


@pytest.mark.parametrize("name", CELLS)
def test_same_key_same_devices(name):
    cell = CELLS[name]
    a, b = (cell.program(targets(cell, 200), Key(1)) for _ in range(2))
    assert torch.equal(a.conductance, b.conductance) and torch.equal(a.exponent, b.exponent)
    if name != "ideal":
        assert not torch.equal(a.conductance, cell.program(targets(cell, 200), Key(2)).conductance)
        assert not torch.equal(cell.read(a, HOUR if cell.drifts else 0.0, Key(1)), a.conductance)


@pytest.mark.parametrize("name", DRIFTING)
def test_times_in_any_order(name):
    cell = CELLS[name]
    cells = cell.program(targets(cell, 200), Key(1))
    fresh = {t: cell.read(cells, t, Key(1)) for t in (HOUR,)}
    for t in (YEAR, 0.0, 1.0, DAY, YEAR, HOUR):
        again = cell.read(cells, t, Key(1))
        if t in fresh:
            assert torch.equal(again, fresh[t])
        fresh[t] = again
    assert len({tuple(v.flatten().tolist()) for v in fresh.values()}) == (
        4 if name == "single_exponent" else 5
    )


@pytest.mark.parametrize("name", DRIFTING)
def test_drift_only_lowers(name):
    cell = CELLS[name]
    cells = cell.program(targets(cell, 200), Key(1))
    sizes = torch.stack([cell.drift(cells, t).abs() for t in (0.0, HOUR, DAY, YEAR)])
    assert torch.equal(sizes[0], cells.conductance.abs())
    assert bool((sizes.diff(dim=0) <= 0).all())
    assert float(sizes[3].sum() / sizes[0].sum()) < 0.65


@pytest.mark.parametrize("name", CELLS)
def test_devices_do_not_depend_on_how_many_follow(name):
    cell = CELLS[name]
    g = torch.full((1, 300), 0.5 * cell.g_max)
    long, short = cell.program(g, Key(1)), cell.program(g[:, :100], Key(1))
    assert torch.equal(long.conductance[:, :100], short.conductance)
    assert torch.equal(long.exponent[:, :100], short.exponent)


@pytest.mark.parametrize("name", CELLS)
def test_read_noise_is_gone_only_where_the_cell_says_so(name):
    cell = CELLS[name]
    g = torch.tensor([0.5 * cell.g_max])
    silent = float(cell.read_noise_std(g, 0.0)) == 0
    assert silent == (name in ("single_exponent", "ideal"))


# ---------------------------------------------------------------- the path of the read noise


def path(elapsed: float, n: int = N, start: float = 4.0, seed: int = 9) -> torch.Tensor:
    return brownian(Key(seed), (n,), start, elapsed).double()


@pytest.mark.parametrize("elapsed", [0.0, 1e-4, 0.3, 5.2, 8.0, 15.999, 16.0, 16.001, 24.0, 31.9, 32.0])
def test_brownian_variance_is_the_clock(elapsed):
    assert_moments(f"path at {elapsed}", path(elapsed), 0.0, math.sqrt(4.0 + elapsed))


def test_brownian_steps_are_independent():
    clocks = [0.0, 0.5, 3.0, 8.0, 8.0 + 2**-11, 14.27, 20.0, 32.0]
    paths = torch.stack([path(c) for c in clocks])
    steps = torch.cat([paths[:1], paths.diff(dim=0)])
    widths = [4.0, *(b - a for a, b in zip(clocks, clocks[1:]))]
    for step, width in zip(steps, widths):
        assert_moments(f"step of {width}", step, 0.0, math.sqrt(width))
    correlation = torch.corrcoef(steps) - torch.eye(len(steps))
    assert float(correlation.abs().max()) < 5 / math.sqrt(N)


def test_brownian_near_times_are_near():
    for at in (0.0, 2**-12, 5.0, 15.9999999, 16.0, 20.0 + 2**-12):
        near = [path(at + d, n=1000) for d in (0.0, 1e-9)]
        assert float((near[0] - near[1]).abs().max()) < 4 * 1e-4
    assert torch.equal(path(5.19850), path(5.19850))


def test_brownian_knows_its_range():
    with pytest.raises(AimcError, match="time"):
        path(LOG_RANGE + 1e-6)
    with pytest.raises(AimcError, match="time"):
        PCM().read(PCM().program(torch.ones(1), Key(0)), 1e17, Key(0))


# ---------------------------------------------------------------- faults

STUCK = PCM(faults=Faults(reset=0.02, maximum=0.03, random=0.05), g_min=0.5)


def test_shares_of_stuck_devices():
    cells = STUCK.program(torch.full((N,), 12.5), Key(1))
    assert cells.stuck is not None
    assert_moments("stuck", cells.stuck.double(), 0.10)
    held = cells.conductance[cells.stuck]
    assert_moments("at g_min", (held == 0.5).double(), 0.2)
    assert_moments("at g_max", (held == 25.0).double(), 0.3)
    middle = held[(held > 0.5) & (held < 25.0)]
    assert_moments("between", middle, (0.5 + 25) / 2, 24.5 / math.sqrt(12))
    working = cells.conductance[~cells.stuck]
    assert_moments("working devices", working, 12.5, float(STUCK.programming_std(torch.tensor(12.5))))


def test_stuck_devices_stay_and_do_not_drift():
    cells = STUCK.program(torch.full((N // 10,), 12.5), Key(1))
    again = STUCK.program(torch.full((N // 10,), 20.0), Key(1))
    assert cells.stuck is not None and again.stuck is not None
    assert torch.equal(cells.stuck, again.stuck), "another target must not heal a device"
    assert torch.equal(cells.conductance[cells.stuck], again.conductance[cells.stuck])
    for time in (0.0, 1.0, HOUR, YEAR):
        assert torch.equal(STUCK.drift(cells, time)[cells.stuck], cells.conductance[cells.stuck])
        assert torch.equal(STUCK.read(cells, time, Key(5))[cells.stuck], cells.conductance[cells.stuck])
    aged = STUCK.drift(cells, YEAR)[~cells.stuck]
    assert bool((aged < cells.conductance[~cells.stuck]).all())


def test_faults_leave_the_working_devices_alone():
    healthy = PCM(g_min=0.5).program(torch.full((1000,), 12.5), Key(1))
    cells = STUCK.program(torch.full((1000,), 12.5), Key(1))
    assert healthy.stuck is None and cells.stuck is not None
    assert torch.equal(cells.conductance[~cells.stuck], healthy.conductance[~cells.stuck])
    assert torch.equal(cells.exponent, healthy.exponent)


def test_signed_device_is_stuck_on_its_own_side():
    cell = SingleExponentPCM(faults=Faults(maximum=1.0))
    assert cell.program(torch.tensor([3.0, -3.0]), Key(0)).conductance.tolist() == [25.0, -25.0]


def test_impossible_shares_are_refused():
    with pytest.raises(AimcError, match="add up"):
        Faults(reset=0.5, maximum=0.4, random=0.2)
    with pytest.raises(AimcError, match="maximum"):
        Faults(maximum=-0.1)


# ---------------------------------------------------------------- tabulated


def test_table_is_interpolated_and_held_outside():
    g = torch.tensor([0.0, 1.0, 2.0, 3.0, 5.0, 15.0, 25.0], dtype=torch.float64)
    mean, spread = TABLE.drift_exponent(g)
    assert_close("mean", mean, torch.tensor([0.1, 0.1, 0.09, 0.08, 0.06, 0.055, 0.05]).double(), atol=1e-8)
    assert_close(
        "spread", spread, torch.tensor([0.04, 0.04, 0.035, 0.03, 0.02, 0.015, 0.01]).double(), atol=1e-8
    )
    assert_close("programming", TABLE.programming_std(g), PCM().programming_std(g))
    assert_close("read noise", TABLE.read_noise_std(g, HOUR), PCM().read_noise_std(g, HOUR))


def test_table_is_in_microsiemens():
    """The points do not stretch with the full scale."""
    half = TABLE.replace(g_max=10.0)
    g = torch.tensor([3.0])
    assert_close("mean", half.drift_exponent(g)[0], TABLE.drift_exponent(g)[0], atol=1e-7)


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"conductance": (5, 1, 25)}, "conductance"),
        ({"conductance": (1, 1, 25)}, "conductance"),
        ({"conductance": (-1, 5, 25)}, "conductance"),
        ({"exponent_mean": (0.1, 0.05)}, "exponent_mean"),
        ({"exponent_std": (0.1, -0.05, 0.1)}, "exponent_std"),
    ],
)
def test_bad_tables_are_refused(changes, field):
    with pytest.raises(AimcError, match=field):
        TABLE.replace(**changes)


# ---------------------------------------------------------------- single exponent


def test_single_exponent_factor():
    cell = SingleExponentPCM()
    cells = cell.program(torch.tensor([10.0, -10.0]), Key(0))
    expected = {0.0: 1.0, 1.0: 1.0, 20.0: 1.0, HOUR: 180**-0.05, YEAR: 0.489905}
    for time, factor in expected.items():
        assert_close(
            f"at {time} s",
            cell.read(cells, time, Key(0)) / cells.conductance,
            torch.full((2,), factor),
            rtol=2e-6,
        )
    assert float(cell.read(cells, YEAR, Key(0))[0] / cells.conductance[0]) == pytest.approx(0.4899, abs=1e-4)


def test_single_exponent_costs_nothing_once_compensated():
    """What makes the model too easy, and why it is not the default: the error is the same at every time."""
    cell = SingleExponentPCM()
    w = (torch.randn(512, 512, generator=torch.Generator().manual_seed(0)) * 0.25).clamp(-1, 1)
    cells = cell.program(25 * w, Key(0))
    fresh = cells.conductance / 25
    for time in (0.0, 1.0, HOUR, DAY, YEAR):
        aged = cell.read(cells, time, Key(0)) / 25
        factor = float(fresh.abs().mean() / aged.abs().mean())
        error = float((factor * aged - w).norm() / w.norm())
        assert error == pytest.approx(0.099, abs=1e-3)
        assert error == pytest.approx(float((fresh - w).norm() / w.norm()), rel=1e-5)


# ---------------------------------------------------------------- ideal


def test_ideal_holds_and_refuses_to_age():
    cell = Ideal()
    g = torch.tensor([0.0, 3.0, 25.0])
    cells = cell.program(g, Key(0))
    assert torch.equal(cell.read(cells, 0.0, Key(0)), g)
    for ask in (cell.drift, lambda cells, t: cell.read(cells, t, Key(0))):
        with pytest.raises(AimcError, match="does not drift") as caught:
            ask(cells, 1.0)
        assert caught.value.field == "cell"


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    "make, field",
    [
        (lambda: PCM(g_max=0.0), "g_max"),
        (lambda: PCM(g_min=-1.0), "g_min"),
        (lambda: PCM(g_min=25.0), "g_max"),
        (lambda: PCM(t0=0.0), "t0"),
        (lambda: PCM(t_read=20.0), "t_read"),
        (lambda: PCM(read_noise_scale=-1.0), "read_noise_scale"),
        (lambda: PCM(programming=()), "programming"),
        (lambda: PCM(prog_coeffs=(1.0,)), "prog_coeffs"),
        (lambda: Hermes(parallel=3), "parallel"),
        (lambda: SingleExponentPCM(g_min=1.0), "g_min"),
    ],
)
def test_impossible_cells_are_refused_by_name(make, field):
    with pytest.raises(AimcError) as caught:
        make()
    assert caught.value.field == field
