"""What every pulsed cell owes: closed forms, symmetry points, spreads of devices, and what happens to whole arrays."""

from __future__ import annotations

import math

import pytest
import torch

import aimc
from aimc.cells import (
    PULSED_CELLS,
    ConstantStep,
    ExpStep,
    Ladder,
    LinearStep,
    PiecewiseStep,
    PowStep,
    PowStepReference,
    PulsedCell,
    SoftBounds,
    SoftBoundsReference,
    measured,
    soft_bounds_pmax,
)
from aimc.cells.pulsed import BMAX, BMIN, DOWN, UP
from aimc.config import Config
from aimc.errors import AimcError
from aimc.random import Key, normals_at, uniform
from tests.helpers import assert_close
from tests.moments import assert_moments
from tests.pulsed_cells import ALIKE, NO_POWERS, NO_SLOPES, PULSED

BOTH = torch.tensor([True, False])


def both(cell: PulsedCell, w: float, noise: float = 0.0) -> list[float]:
    """The weight after an up and after a down pulse on the one device of a cell without spread."""
    p = cell.draw((1, 1), Key(0))[0]
    assert p.shape[0] == 1
    return cell.step(torch.full((2,), w), p, BOTH, torch.full((2,), noise)).tolist()


# ---------------------------------------------------------------- closed forms

RESPONSES = {
    "constant": (ConstantStep(**ALIKE, dw_min=0.1, up_down=0.2), 0.4, 0.0, [0.5, 0.32]),
    "constant_noise": (ConstantStep(**ALIKE, dw_min=0.1, dw_min_std=0.5), 0.4, 1.0, [0.55, 0.25]),
    "constant_bound": (ConstantStep(**ALIKE, dw_min=0.1), 0.97, 0.0, [1.0, 0.87]),
    "constant_down_stronger": (ConstantStep(**ALIKE, dw_min=0.1, up_down=-0.3), 0.4, 0.0, [0.47, 0.3]),
    "linear": (LinearStep(**NO_SLOPES, dw_min=0.1, gamma_up=0.5, gamma_down=0.2), 0.4, 0.0, [0.48, 0.292]),
    "linear_noise": (LinearStep(**NO_SLOPES, dw_min=0.1, gamma_up=0.5, dw_min_std=0.5), 0.4, 1.0, [0.52, 0.25]),
    "linear_additive": (
        LinearStep(**NO_SLOPES, dw_min=0.1, gamma_up=0.5, dw_min_std=0.5, mult_noise=False), 0.4, 1.0, [0.53, 0.25]
    ),
    "soft": (SoftBounds(**ALIKE, dw_min=0.1), 0.4, 0.0, [0.46, 0.26]),
    "soft_noise": (SoftBounds(**ALIKE, dw_min=0.1, dw_min_std=0.5), 0.4, -1.0, [0.43, 0.33]),
    "soft_additive": (SoftBounds(**ALIKE, dw_min=0.1, dw_min_std=0.5, mult_noise=False), 0.4, -1.0, [0.41, 0.31]),
    # v = 0.6: the steps are 0.04 and 0.16, the bounds of w 0.8 and -1.2.
    "reference": (SoftBoundsReference(**ALIKE, dw_min=0.1, reference_mean=0.2), 0.4, 0.0, [0.44, 0.24]),
    "reference_noise": (
        SoftBoundsReference(**ALIKE, dw_min=0.1, reference_mean=0.2, dw_min_std=0.5), 0.4, 1.0, [0.49, 0.19]
    ),
    "reference_mult": (
        SoftBoundsReference(**ALIKE, dw_min=0.1, reference_mean=0.2, mult_noise=True, dw_min_std=0.5), 0.4, 1.0,
        [0.46, 0.16],
    ),
    "reference_bound": (
        SoftBoundsReference(**ALIKE, dw_min=0.1, reference_mean=0.2, dw_min_std=0.5), 0.79, 1.0, [0.8, 0.541]
    ),
    "exp": (
        ExpStep(**ALIKE, dw_min=0.1, A_up=0.2, A_down=0.1, gamma_up=1.0, gamma_down=2.0, a=0.5, b=0.1), 0.4, 0.0,
        [0.4 + 0.1 * (1 - 0.2 * math.exp(0.3)), 0.4 - 0.1 * (1 - 0.1 * math.exp(-0.6))],
    ),
    "exp_beyond": (
        ExpStep(**ALIKE, dw_min=0.1, A_up=0.5, gamma_up=9.0, a=1.0, b=0.0, A_down=0.0), 0.9, 0.0, [0.9, 0.8]
    ),
    "exp_noise": (
        ExpStep(**ALIKE, dw_min=0.1, A_up=0.0, A_down=0.5, gamma_down=0.0, dw_min_std=0.5, dw_min_std_add=0.02,
                dw_min_std_slope=0.1), -0.4, 1.0, [-0.4 + 0.1 + 0.5 * 0.16, -0.4 - 0.05 - 0.5 * 0.11],
    ),
    "pow": (PowStep(**NO_POWERS, dw_min=0.1, pow_gamma=2.0), 0.4, 0.0, [0.409, 0.351]),
    "pow_up_down": (PowStep(**NO_POWERS, dw_min=0.1, pow_gamma=2.0, pow_up_down=0.5), 0.4, 0.0, [0.409, 0.33]),
    "pow_reference": (
        PowStepReference(**NO_POWERS, dw_min=0.1, pow_gamma=2.0, reference_mean=0.2), 0.2, 0.0, [0.209, 0.151]
    ),
    "piecewise": (
        PiecewiseStep(**ALIKE, dw_min=0.1, piecewise_up=(2, 1, 0.5), piecewise_down=(0, 1, 3)), 0.4, 0.0, [0.48, 0.22]
    ),
    "piecewise_top": (
        PiecewiseStep(**ALIKE, dw_min=0.1, piecewise_up=(2, 1, 0.5), piecewise_down=(0, 1, 3)), 1.0, 0.0, [1.0, 0.7]
    ),
    "piecewise_one": (PiecewiseStep(**ALIKE, dw_min=0.1, dw_min_std=0.5), 0.4, 1.0, [0.55, 0.25]),
    # From level 3 of 5: up with probability 1/2, down for certain.
    "ladder": (Ladder(**ALIKE, levels=5), 0.5, -0.01, [0.5, 0.0]),
    "ladder_moves": (Ladder(**ALIKE, levels=5), 0.5, 0.01, [1.0, 0.0]),
    "ladder_end": (Ladder(**ALIKE, levels=5), 1.0, 5.0, [1.0, 0.5]),
}  # fmt: skip


@pytest.mark.parametrize("name", RESPONSES)
def test_response(name):
    cell, w, noise, expected = RESPONSES[name]
    assert_close("weight", torch.tensor(both(cell, w, noise)), torch.tensor(expected), atol=2e-7, rtol=0)


@pytest.mark.parametrize("name", PULSED)
def test_the_mean_change_is_the_mean_of_the_steps(name):
    """Far enough inside the bounds that none is clipped, the mean over the noise of the pulse is what is promised."""
    cell = PULSED[name].replace(write_noise_std=0.0)
    if not isinstance(cell, Ladder):
        cell = cell.replace(dw_min_std=min(cell.dw_min_std, 0.3), dw_min=min(cell.dw_min, 0.02))
    p = cell.draw((1, 1), Key(2))[0, 0]
    n, worst = 40_000, 0.0
    for share in (
        (0.5, 2 / 3) if not isinstance(cell, Ladder) else (0.0, cell.positions[1], cell.positions[-2])
    ):
        w = cell.snap(p[BMIN] + (p[BMAX] - p[BMIN]) * torch.tensor(share), p)
        xi = normals_at(Key(3), torch.arange(n))
        for up in (True, False):
            moved = cell.step(w.expand(n), p, torch.tensor(up), xi) - w
            mean = cell.mean_change(w[None], p, torch.tensor(up))
            assert_moments(f"{share} {up}", moved, mean=float(mean) if up else -float(mean), errors=6.0)
            worst = max(worst, float(mean))
    assert worst > 1e-5


# ---------------------------------------------------------------- symmetry point, granularity

HALF = {**ALIKE, "up_down": 0.5}  # up 1, down 1/2
POINTS = {
    "constant": (ConstantStep(**ALIKE), 0.0),
    "constant_off_zero": (ConstantStep(**{**ALIKE, "w_max": 0.0, "w_min": -1.0}), 0.0),
    "constant_biased": (ConstantStep(**HALF), math.nan),
    "linear": (LinearStep(**{**NO_SLOPES, "up_down": 0.5}, gamma_up=1.0, gamma_down=1.0), 1 / 3),
    "linear_outside": (LinearStep(**{**NO_SLOPES, "up_down": 0.5}, gamma_up=0.1, gamma_down=0.1), math.nan),
    "soft": (SoftBounds(**HALF), 1 / 3),
    "soft_down_stronger": (SoftBounds(**{**ALIKE, "up_down": -0.5}), -1 / 3),
    "reference": (SoftBoundsReference(**HALF, reference_mean=0.1), 1 / 3 - 0.1),
    "reference_subtracted": (SoftBoundsReference(**HALF, subtract_symmetry_point=True, reference_mean=0.1), -0.1),
    # A exp(z) = A exp(-z) at z = w + b = 0.
    "exp": (ExpStep(**ALIKE, A_up=0.2, A_down=0.2, gamma_up=1.0, gamma_down=1.0, a=1.0, b=-0.3), 0.3),
    # ((1 - w) / (1 + w))^2 = 1/2.
    "pow": (PowStep(**{**NO_POWERS, "up_down": 0.5}, pow_gamma=2.0), (2**0.5 - 1) / (2**0.5 + 1)),
    "pow_reference": (
        PowStepReference(**{**NO_POWERS, "up_down": 0.5}, pow_gamma=2.0, subtract_symmetry_point=True), 0.0
    ),
    # 2 - r = r at r = w + 1 = 1; with half the down steps 2 - r = r / 2.
    "piecewise": (PiecewiseStep(**ALIKE, piecewise_up=(2, 0), piecewise_down=(0, 2)), 0.0),
    "piecewise_biased": (PiecewiseStep(**HALF, piecewise_up=(2, 0), piecewise_down=(0, 2)), 1 / 3),
    "ladder": (Ladder(**ALIKE, levels=4), 0.0),
    # Steps up 1, 1, 1/2 -> 0 at levels 0.5, 1 (of -1 .. 1), down 1/2 everywhere above 0: equal at 0.5.
    "ladder_biased": (Ladder(**HALF, levels=5), 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", POINTS)
def test_symmetry_point(name):
    cell, expected = POINTS[name]
    p = cell.draw((1, 1), Key(0))
    found = cell.symmetry_point(p)
    assert found.shape == (1, 1) and found.dtype == torch.float32
    if math.isnan(expected):
        assert bool(found.isnan().all())
    else:
        assert_close("symmetry point", found, torch.full((1, 1), expected), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", PULSED)
def test_at_the_symmetry_point_up_and_down_are_equal(name):
    cell = PULSED[name].replace(corrupt_probability=0.2)
    p = cell.draw((20, 20), Key(1))
    point = cell.symmetry_point(p)
    stuck = p[..., BMAX] == p[..., BMIN]
    assert bool(point[stuck].isnan().all()) and int(stuck.sum()) > 40
    known = ~point.isnan()
    if name in ("constant", "piecewise_one", "gokmen_vlasov"):
        assert not known.any()
        return
    assert int(known.sum()) > (100 if name == "capacitor" else 200)
    p, w = p.expand(20, 20, -1)[known].double(), point[known].double()
    up, down = (cell.mean_change(w, p, torch.tensor(d)) for d in (True, False))
    assert bool(((w >= p[:, BMIN]) & (w <= p[:, BMAX])).all())
    assert_close("steps", up, down, atol=1e-5 * cell.granularity, rtol=1e-4)


def test_a_train_of_alternating_pulses_ends_at_the_symmetry_point():
    for name in ("reference", "exp_noise", "pow"):
        cell = PULSED[name].replace(dw_min=0.03)
        p = cell.draw((9, 9), Key(1))
        point = cell.symmetry_point(p)
        w = cell.snap(torch.zeros(9, 9), p)
        for k in range(800):
            w = cell.step(w, p, torch.tensor(k % 2 == 0), torch.zeros(9, 9))
        known = ~point.isnan()
        assert_close(name, w[known], point[known], atol=0.05, rtol=0)


GRANULARITIES = {
    "constant": (ConstantStep(dw_min=0.02), 0.02),
    "linear": (LinearStep(dw_min=0.02, gamma_up=0.5), 0.02),
    "soft": (SoftBounds(dw_min=0.02), 0.02),
    "reference": (SoftBoundsReference(dw_min=0.02), 0.02),
    "exp": (ExpStep(dw_min=0.02, A_up=0.2, A_down=0.6, b=0.0), 0.02 * (0.8 + 0.4) / 2),
    "exp_default": (ExpStep(dw_min=0.02), 0.0196686),
    "pow": (PowStep(dw_min=0.02, pow_gamma=2.0), 0.005),
    "pow_reference": (PowStepReference(dw_min=0.02, pow_gamma=0.5), 0.02 * 0.5**0.5),
    "piecewise": (PiecewiseStep(dw_min=0.02, piecewise_up=(2, 1, 0), piecewise_down=(0, 3, 0)), 0.04),
    "piecewise_off_zero": (
        PiecewiseStep(dw_min=0.02, w_max=0.75, w_min=-0.25, piecewise_up=(2, 1, 0), piecewise_down=(0, 1, 2)), 0.02
    ),
    "ladder": (Ladder(levels=4, w_max=1.0, w_min=-0.5), 0.5),
    "ladder_uneven": (Ladder(levels=(0, 0.2, 1), w_max=1.0, w_min=-1.0), 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", GRANULARITIES)
def test_granularity(name):
    cell, expected = GRANULARITIES[name]
    assert cell.granularity == pytest.approx(expected, rel=2e-6)
    if not isinstance(cell, Ladder):
        assert cell.states == pytest.approx((cell.w_max - cell.w_min) / expected, rel=2e-6)


@pytest.mark.parametrize("name", ["exp", "pow", "piecewise"])
def test_granularity_is_the_step_of_the_mean_device_at_zero(name):
    cell = GRANULARITIES[name][0]
    cell = cell.replace(**{n: 0.0 for n in cell.field_names() if n.endswith("_dtod")}, w_max=1.0, w_min=-1.0)
    p = cell.draw((1, 1), Key(0))[0]
    mean = cell.mean_change(torch.zeros(2), p, BOTH).mean()
    assert float(mean) == pytest.approx(cell.granularity, rel=1e-5)


@pytest.mark.parametrize("name", [n for n in PULSED_CELLS if n[0].isupper()])
def test_with_states(name):
    kind = PULSED_CELLS[name]
    cell = kind.with_states(16, w_max=1.0, w_min=-1.0)  # type: ignore[attr-defined]
    assert cell.states == pytest.approx(16)
    assert Config.from_dict(cell.to_dict()) == cell
    assert cell.granularity == pytest.approx(2 / (15 if name == "Ladder" else 16))


# ---------------------------------------------------------------- devices


def test_spread_of_devices():
    cell = SoftBounds(dw_min=0.1, dw_min_dtod=0.1, up_down=0.2, up_down_dtod=0.05, w_max=1.0, w_min=-0.8,
                      w_max_dtod=0.1, w_min_dtod=0.15)  # fmt: skip
    p = cell.draw((300, 300), Key(1))
    both = 0.1 * math.hypot(0.1, 0.05)
    for column, mean, std in ((UP, 0.1, both), (DOWN, 0.08, both), (BMAX, 1.0, 0.1), (BMIN, -0.8, 0.12)):
        assert_moments(f"column {column}", p[..., column], mean=mean, std=std)
    # Gain and asymmetry are independent, and each belongs to the whole device.
    assert_moments("gain", (p[..., UP] + p[..., DOWN]) / 2, mean=0.09, std=0.01)
    assert_moments("asymmetry", (p[..., UP] - p[..., DOWN]) / 2, mean=0.01, std=0.005)
    assert_moments("bounds", (p[..., BMAX] - 1) * (p[..., BMIN] + 0.8), mean=0.0)
    assert_moments("bound, step", (p[..., BMAX] - 1) * (p[..., UP] - 0.1), mean=0.0)


def test_log_normal_spread():
    p = ConstantStep(dw_min=0.1, dw_min_dtod=0.5, dw_min_dtod_log_normal=True, up_down_dtod=0.0).draw(
        (200, 200), Key(1)
    )
    assert_moments("log step", (p[..., UP] / 0.1).log(), mean=0.0, std=0.5)


def test_devices_are_consistent():
    p = ConstantStep(dw_min_dtod=2.0, w_max_dtod=2.0, w_min_dtod=2.0).draw((100, 100), Key(1))
    assert bool((p[..., :2] >= 0).all() & (p[..., BMAX] >= 0).all() & (p[..., BMIN] <= 0).all())


def test_spread_of_slopes_exponents_and_references():
    shape = (300, 300)
    linear = LinearStep(**{**NO_SLOPES, "gamma_up_dtod": 0.1, "gamma_down_dtod": 0.05}, dw_min=0.1, gamma_up=0.6,
                        gamma_down=0.4).draw(shape, Key(1))  # fmt: skip
    assert_moments("up", -linear[..., 4] / 0.1, mean=0.6, std=0.1)
    assert_moments("down", linear[..., 5] / 0.1, mean=0.4, std=0.05)
    power = PowStep(**ALIKE, pow_gamma=2.0, pow_gamma_dtod=0.1, pow_up_down=0.2, pow_up_down_dtod=0.05)
    power = power.draw(shape, Key(1))
    assert_moments("gamma", (power[..., 4] + power[..., 5]) / 2, mean=1.8, std=0.2)
    assert_moments("difference", (power[..., 4] - power[..., 5]) / 2, mean=0.2, std=0.1)
    slopes = SoftBoundsReference(**ALIKE, dw_min=0.1, slope_up_dtod=0.1, slope_down_dtod=0.2, reference_mean=0.3,
                                 reference_std=0.05)  # fmt: skip
    p = slopes.draw(shape, Key(1))
    assert_moments("slope up", -p[..., 4] / 0.1, mean=1.0, std=0.1)
    assert_moments("slope down", p[..., 5] / 0.1, mean=1.0, std=0.2)
    # The two bounds of v, 1/slope apart, carry the reference.
    assert_moments("reference", -0.1 / p[..., 4] - p[..., BMAX], mean=0.3, std=0.05)
    # A step vanishes at its bound.
    assert_close("step at the bound", p[..., 4] * p[..., BMAX] + p[..., UP], torch.zeros(shape), atol=1e-6)


def test_slopes_may_increase_only_where_allowed():
    fields = {**NO_SLOPES, "gamma_up_dtod": 0.1, "gamma_down_dtod": 0.1}
    slope = LinearStep(**fields).draw((50, 50), Key(1))
    assert bool((slope[..., 4] <= 0).all() & (slope[..., 5] >= 0).all())
    slope = LinearStep(**fields, allow_increasing=True).draw((50, 50), Key(1))
    assert 0.4 < float((slope[..., 4] > 0).float().mean()) < 0.6
    own = LinearStep(**{**fields, "w_max_dtod": 0.3}, gamma_up=0.5, mean_bound_reference=False).draw(
        (50, 50), Key(1)
    )
    mean = LinearStep(**{**fields, "w_max_dtod": 0.3}, gamma_up=0.5).draw((50, 50), Key(1))
    assert_close("slope", own[..., 4] * own[..., BMAX], mean[..., 4], atol=1e-9, rtol=1e-5)


@pytest.mark.parametrize("name", PULSED)
def test_corrupt_devices_never_move(name):
    cell = PULSED[name].replace(
        corrupt_probability=0.25, corrupt_range=0.05, lifetime=5.0, rest=0.3, diffusion=0.1
    )
    shape = (100, 100)
    p = cell.draw(shape, Key(1))
    stuck = p[..., BMAX] == p[..., BMIN]
    assert_moments("share", stuck.float(), mean=0.25)
    w = cell.snap(torch.full(shape, 0.2), p)
    before = w.clone()
    for k in range(3):
        w = cell.step(
            w, p, torch.tensor(k != 1), normals_at(Key(2, step=k), torch.arange(10_000).view(shape))
        )
    cell.relax(w, p, cell.draw_retention(shape, Key(1)), Key(3))
    cell.reset(w, p, {}, torch.ones(shape, dtype=torch.bool), Key(4))
    assert_close("stuck", w[stuck], before[stuck], atol=0, rtol=0)
    assert bool((w[~stuck] != before[~stuck]).float().mean() > 0.15)
    if not hasattr(cell, "reference_std") and name != "pcm_pulsed":
        assert_moments("stuck at", before[stuck], mean=0.0, std=0.05 / 3**0.5)
        assert float(before[stuck].abs().max()) <= 0.05


@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize(
    "cell",
    [SoftBounds(), SoftBoundsReference(), LinearStep(mean_bound_reference=False)],
    ids=lambda c: type(c).__name__,
)
def test_a_device_may_have_drawn_a_bound_of_exactly_zero(cell, top):
    """One of millions does, and must not make its weight, or a sum over its tile, not a number."""
    bounds = {"w_max": 0.0, "w_min": -1.0} if top else {"w_max": 1.0, "w_min": 0.0}
    p = cell.replace(**bounds, w_max_dtod=0.0, w_min_dtod=0.0, dw_min=0.1).draw((1, 1), Key(0))
    assert p.isfinite().all()
    outwards, w = torch.tensor(top), torch.tensor([[-0.5 if top else 0.5]])
    for _ in range(3):
        w = cell.step(w, p, outwards, torch.tensor(0.5))
        assert w == 0
    assert 0 < abs(cell.step(w, p, ~outwards, torch.tensor(0.5))) < 0.5


def test_same_key_same_devices():
    for name, cell in PULSED.items():
        a, b, c = (cell.draw((5, 6), Key(k)) for k in (1, 1, 2))
        assert torch.equal(a, b) and not torch.equal(a, c), name


def test_write_noise_and_retention_do_not_make_devices_differ():
    cell = SoftBounds(
        **ALIKE,
        write_noise_std=1.0,
        lifetime=5.0,
        lifetime_dtod=0.3,
        rest_dtod=0.1,
        diffusion=0.1,
        diffusion_dtod=0.1,
    )
    assert not cell.spreads and cell.noisy
    assert SoftBoundsReference(**ALIKE, reference_std=0.1).spreads
    assert SoftBounds(**ALIKE, corrupt_probability=0.1).spreads
    assert not SoftBounds(dw_min_std=0.0).noisy


# ---------------------------------------------------------------- whole arrays


def test_decay_to_a_negative_rest_point():
    cell = SoftBounds(**ALIKE, lifetime=10.0, rest=-0.5)
    p, retention, held = (
        cell.draw((1, 1), Key(0)),
        cell.draw_retention((1, 1), Key(0)),
        torch.full((1, 1), 0.3),
    )
    for n in range(1, 201):
        cell.relax(held, p, retention, Key(1, step=n))
        assert abs(float(held) - (-0.5 + 0.8 * 0.9**n)) < 1e-5


def test_diffusion_is_a_random_walk_within_the_bounds():
    cell = SoftBounds(**ALIKE, diffusion=0.02, diffusion_dtod=0.3)
    shape = (200, 200)
    p, retention, held = cell.draw(shape, Key(0)), cell.draw_retention(shape, Key(0)), torch.zeros(shape)
    assert set(retention) == {"diffusion"}
    assert_moments("rate", retention["diffusion"], mean=0.02, std=0.006)
    for n in range(4):
        cell.relax(held, p, retention, Key(1, step=n))
    assert_moments("walk", held, mean=0.0, std=2 * 0.02 * math.hypot(1, 0.3))
    held.fill_(0.999)
    cell.relax(held, p, retention, Key(1, step=9))
    assert float(held.max()) == 1.0 and 0.3 < float((held == 1).float().mean()) < 0.6


def test_spread_of_lifetime_and_rest():
    cell = SoftBounds(lifetime=10.0, lifetime_dtod=0.1, rest=0.2, rest_dtod=0.05)
    found = cell.draw_retention((300, 300), Key(1))
    assert_moments("lifetime", 1 / found["decay"], mean=10.0, std=1.0)
    assert_moments("rest", found["rest"], mean=0.2, std=0.05)
    assert (
        float(SoftBounds(lifetime=2.0, lifetime_dtod=2.0).draw_retention((99, 99), Key(1))["decay"].max())
        == 1.0
    )
    assert SoftBounds().draw_retention((3, 3), Key(1)) == {}
    assert set(SoftBounds(rest_dtod=0.1).draw_retention((3, 3), Key(1))) == {"rest"}


def test_reset():
    cell = SoftBounds(**ALIKE, rest=0.1, reset_std=0.05, rest_dtod=0.2)
    shape = (200, 200)
    p, retention = cell.draw(shape, Key(0)), cell.draw_retention(shape, Key(0))
    mask = uniform(Key(5), shape) < 0.5
    held = torch.full(shape, 0.7)
    cell.reset(held, p, retention, mask, Key(1))
    assert bool((held[~mask] == torch.tensor(0.7)).all())
    assert_moments("noise", (held - retention["rest"])[mask], mean=0.0, std=0.05)
    again = torch.full(shape, 0.7)
    cell.reset(again, p, retention, mask, Key(1, step=1))
    assert not torch.equal(held, again)
    cell = cell.replace(rest=0.99, rest_dtod=0.0)
    cell.reset(held, p, {}, mask, Key(1))
    assert float(held.max()) == 1.0


# ---------------------------------------------------------------- the ladder


def levels_of(cell: Ladder, p: torch.Tensor) -> torch.Tensor:
    s = torch.tensor(cell.positions)
    values = p[..., BMIN, None] + (p[..., BMAX] - p[..., BMIN])[..., None] * s
    return torch.minimum(torch.maximum(values, p[..., BMIN, None]), p[..., BMAX, None])


@pytest.mark.parametrize("name", ["ladder", "ladder_uneven"])
def test_a_ladder_stays_on_its_levels(name):
    cell = PULSED[name].replace(corrupt_probability=0.1, lifetime=9.0, diffusion=0.05)
    shape = (30, 40)
    p = cell.draw(shape, Key(1))
    values, retention = levels_of(cell, p), cell.draw_retention(shape, Key(1))
    held = cell.snap(torch.linspace(-1, 1, 1200).view(shape), p)
    nearest = (values - torch.linspace(-1, 1, 1200).view(*shape, 1)).abs().min(-1).values
    assert_close("nearest", (held - torch.linspace(-1, 1, 1200).view(shape)).abs(), nearest, atol=1e-6)
    moved = 0
    for k in range(40):
        before = (values == held[..., None]).float().argmax(-1)
        if k % 4 == 3:
            cell.relax(held, p, retention, Key(3, step=k))
        else:
            up = uniform(Key(6, step=k), shape) < 0.5
            held = cell.step(held, p, up, normals_at(Key(2, step=k), torch.arange(1200).view(shape)))
            level = (values == held[..., None]).float().argmax(-1)
            step = torch.where(up, level - before, before - level)[p[..., BMAX] > p[..., BMIN]]
            assert set(step.tolist()) <= {0, 1}
            moved += int(step.sum())
        assert bool((values == held[..., None]).any(-1).all())
    assert moved > 10_000
    cell.reset(held, p, retention, torch.ones(shape, dtype=torch.bool), Key(5))
    assert bool((values == held[..., None]).any(-1).all())


def test_a_ladder_mirrors_soft_bounds_near_the_bound():
    ladder, soft = Ladder(**ALIKE, levels=21), SoftBounds(**ALIKE, dw_min=0.1)
    w, up = torch.linspace(0, 1, 11), torch.tensor(True)
    found = ladder.mean_change(w, ladder.draw((1, 1), Key(0))[0, 0], up)
    expected = soft.mean_change(w, soft.draw((1, 1), Key(0))[0, 0], up)
    assert_close("half next to the bound", found[:-1], expected[:-1], atol=1e-6)
    assert_close(
        "far half",
        ladder.mean_change(-w, ladder.draw((1, 1), Key(0))[0, 0], up),
        torch.full((11,), 0.1),
        atol=1e-6,
    )
    long = Ladder(levels=1001)
    assert min(long.switching()[0]) == 0.05 == min(long.switching()[1])


def test_gain_of_a_device_scales_its_chances():
    cell = Ladder(**{**ALIKE, "up_down": 0.4}, levels=3, switch_up=(0.8, 0.5), switch_down=(0.5, 1.0))
    n, xi = 100_000, normals_at(Key(1), torch.arange(100_000))
    p = cell.draw((1, 1), Key(0))[0, 0]
    for w, up, chance in (
        (-1.0, True, 0.8),
        (0.0, True, 0.5),
        (0.0, False, 0.3),
        (1.0, False, 0.6),
        (1.0, True, 0.0),
    ):
        moved = cell.step(torch.full((n,), w), p, torch.tensor(up), xi) != w
        if chance:
            assert_moments(f"{w} {up}", moved.float(), mean=chance)
        else:
            assert not moved.any()


def test_decay_of_a_ladder_is_right_in_the_mean():
    cell = Ladder(**ALIKE, levels=5, lifetime=10.0)
    p, held = cell.draw((1, 1), Key(0)), torch.full((200, 200), 0.5)
    cell.relax(held, p, cell.draw_retention((200, 200), Key(0)), Key(1))
    assert set(held.unique().tolist()) == {0.0, 0.5}
    assert_moments("decay", held, mean=0.45)
    held.fill_(0.0)
    cell.relax(held, p, cell.draw_retention((200, 200), Key(0)), Key(1))
    assert bool((held == 0).all())


# ---------------------------------------------------------------- constructors and mistakes


def test_pmax():
    cell = soft_bounds_pmax(
        20, 0.05, -0.8, 1.1, **{n: 0.0 for n in ALIKE if n.endswith("_dtod")}, dw_min_std=0.0
    )
    p, zero = cell.draw((1, 1), Key(0)), torch.zeros(1, 1)
    reach = 1.9 / (1 - math.exp(-1.0))
    w = torch.full((1, 1), -0.8)
    for k in range(1, 21):
        w = cell.step(w, p, torch.tensor(True), zero)
        assert abs(float(w) - (-0.8 + reach * (1 - math.exp(-0.05 * k)))) < 2e-6
    for k in range(1, 21):
        w = cell.step(w, p, torch.tensor(False), zero)
        assert abs(float(w) - (1.1 - reach * (1 - math.exp(-0.05 * k)))) < 2e-6


_MEASURED = {
    "reram_om": "dw_min 0.0949 dw_min_dtod 0.7829 dw_min_std 0.4158 w_max_dtod 0.3499 w_min_dtod 0.5695 "
    "write_noise_std 1.4113 reference_std 0.05",
    "reram_hfo2": "dw_min 0.4622 dw_min_dtod 0.7125 dw_min_std 0.2174 w_max_dtod 0.4295 w_min_dtod 0.599 "
    "write_noise_std 0.5841 reference_std 0.05",
    "reram_es": "dw_min 0.00135 up_down 0.259359 A_up -1.18445 A_down -0.081404 gamma_up 5 gamma_down 5 a -0.5 b -0.5 "
    "dw_min_std 5 write_noise_std 75",
    "reram_sb": "dw_min 0.002 w_max 1.25 w_min -0.75 dw_min_std 3.75 write_noise_std 56",
    "capacitor": "dw_min 0.005 gamma_up 0.05 gamma_down 0.05 up_down_dtod 0.06 lifetime 1e6 lifetime_dtod 0.3",
    "ecram": "dw_min 0.002 w_max 1.1724 w_min -0.8276 gamma_up 0.1153 gamma_down 0.5085 dw_min_std 0.3",
    "ecram_mo": "dw_min 2.8214e-4 w_max 1.1714 w_min -0.8286 gamma_up 0.4152 gamma_down 0.7342 dw_min_std 2",
    "pcm_pulsed": "dw_min 0.01 w_max 2 w_min 0 A_up -27.235 A_down -2.235 gamma_up 2.5 gamma_down 2.5 a -1 b 0 "
    "dw_min_std 0.6 dw_min_std_add 0.042 dw_min_std_slope 0.108",
    "idealized": "dw_min 0.0002 up_down_dtod 0 dw_min_std 0.3",
    "gokmen_vlasov": "dw_min 0.0016 w_max 1 w_min -1 dw_min_dtod 0.3 dw_min_std 0.3",
}


@pytest.mark.parametrize("name", _MEASURED)
def test_constants_of_the_measured_presets(name):
    """Copied from the source once more, so that a slip in one of the two shows."""
    words = _MEASURED[name].split()
    cell = getattr(measured, name)()
    assert {n: getattr(cell, n) for n in words[::2]} == {n: float(v) for n, v in zip(words[::2], words[1::2])}


def test_presets_are_what_was_measured():
    states = {name: round(PULSED_CELLS[name]().states, 1) for name in PULSED_CELLS if name.islower()}
    assert states == {
        "soft_bounds_pmax": 4001.0, "reram": 4.0,
        "reram_om": 21.1, "reram_hfo2": 4.3, "reram_es": 959.2, "reram_sb": 1000.0,
        "capacitor": 400.0, "ecram": 1000.0, "ecram_mo": 7088.7, "pcm_pulsed": 12.7, "idealized": 10000.0,
        "gokmen_vlasov": 1250.0,
    }  # fmt: skip
    om, sb = measured.reram_om(), measured.reram_sb()
    assert (om.dw_min_dtod, om.dw_min_std, om.w_max_dtod, om.w_min_dtod, om.write_noise_std) == (
        0.7829, 0.4158, 0.3499, 0.5695, 1.4113,
    )  # fmt: skip
    assert om.subtract_symmetry_point and om.reference_std == 0.05 and not om.mult_noise
    assert (sb.w_max, sb.w_min, sb.dw_min_std, sb.write_noise_std) == (1.25, -0.75, 3.75, 56.0)
    for name, make in PULSED_CELLS.items():
        assert make(corrupt_probability=0.25).corrupt_probability == 0.25, name


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SoftBounds(dw_min=0.0), "'dw_min': must be positive"),
        (lambda: SoftBounds(w_max=-1.0), "'w_max': must exceed"),
        (lambda: SoftBounds(w_max_dtod=-0.1), "'w_max_dtod'"),
        (lambda: SoftBounds(lifetime=0.5), "'lifetime'"),
        (lambda: SoftBounds(corrupt_probability=1.5), "'corrupt_probability'"),
        (lambda: SoftBounds(corrupt_range=-1.0), "'corrupt_range'"),
        (lambda: LinearStep(w_min=0.0), "'w_min': is 0 and no reference"),
        (lambda: ExpStep(A_up=2.0, A_down=2.0, b=0.0), "'A_up': no step is left"),
        (lambda: ExpStep(gamma_up=200.0), "beyond 80"),
        (lambda: ExpStep(dw_min_std_add=-1.0), "'dw_min_std_add'"),
        (lambda: ExpStep(dw_min_std_slope=-1.0), "'dw_min_std_slope'"),
        (lambda: PowStep(pow_gamma=-1.0), "'pow_gamma'"),
        (lambda: PowStepReference(pow_gamma=-1.0), "'pow_gamma'"),
        (lambda: PowStep(pow_gamma=1e4), "'pow_gamma': must be at most 100"),
        (lambda: PowStepReference(pow_gamma=1e4), "'pow_gamma': must be at most 100"),
        (lambda: PiecewiseStep(w_max=1e300), "'w_max': must be within ±1e.06, got 1e.300"),
        (lambda: PiecewiseStep(piecewise_up=(1e300,)), "'piecewise_up': must be within"),
        (lambda: SoftBounds(w_min=-1e300), "'w_min': must be within"),
        (lambda: SoftBounds(dw_min=1e300), "'dw_min': must be within"),
        (lambda: SoftBounds(dw_min=1e-300), "'dw_min': must be at least 1e-12"),
        (lambda: SoftBounds(w_max_dtod=1e300), "'w_max_dtod': must be within"),
        (lambda: SoftBounds(lifetime=1e300), "'lifetime': must be within"),
        (lambda: SoftBounds(dw_min_dtod=50.0, dw_min_dtod_log_normal=True), "'dw_min_dtod': is log-normal"),
        (lambda: Ladder(w_max=1e300), "'w_max': must be within"),
        (lambda: SoftBounds(w_max=1e-13), "'w_max': must be 0 or at least 1e-12"),
        (lambda: SoftBounds(w_min=-1e-45), "'w_min': must be 0 or at least 1e-12"),
        (lambda: SoftBounds.with_states(0), "'states': must be positive, got 0"),
        (lambda: SoftBounds.with_states(-3), "'states': must be positive, got -3"),
        (lambda: SoftBounds.with_states(math.inf), "'states': must be finite"),
        (lambda: Ladder.with_states(math.nan), "'states': must be positive, got nan"),
        (lambda: Ladder.with_states(math.inf), "'states': must be finite"),
        (lambda: SoftBounds.with_states(1e300), "'dw_min': must be at least"),
        (lambda: SoftBounds.with_states(4, dw_min=0.1), "'dw_min': follows from states; give one"),
        (lambda: aimc.presets.reram(dw_min=0.001), "'dw_min': follows from states; give one"),
        (lambda: SoftBounds(lifetime_dtod=0.3), "'lifetime_dtod': does nothing without lifetime"),
        (lambda: SoftBounds(diffusion_dtod=0.3), "'diffusion_dtod': does nothing without diffusion"),
        (lambda: PiecewiseStep(piecewise_up=()), "'piecewise_up': needs at least one"),
        (lambda: PiecewiseStep(piecewise_up=(1.0, -1.0)), "must not be negative"),
        (lambda: PiecewiseStep(piecewise_up=(1, 2)), "'piecewise_down': must have as many"),
        (lambda: PiecewiseStep(piecewise_up=(0,), piecewise_down=(0,)), "no step is left"),
        (lambda: Ladder(levels=1), "'levels': must be 2 to 65536, got 1"),
        (lambda: Ladder(levels=2**31 - 1), "'levels': must be 2 to 65536"),
        (lambda: Ladder(levels=(0, 0.5, 0.4, 1)), "'levels': must increase from 0 to 1"),
        (lambda: Ladder(levels=(0, 0.5)), "must increase from 0 to 1"),
        (lambda: Ladder(switch_up=(0.5,)), "'switch_up': needs 3 probabilities, got 1"),
        (lambda: Ladder(switch_down=(0.5, 1.5, 0.2)), "'switch_down': are probabilities"),
        (lambda: Ladder(floor=2.0), "'floor'"),
        (lambda: Ladder(dw_min=0.1), "'dw_min': Ladder has no such field"),
        (lambda: Ladder.with_states(4.5), "'levels': expects a whole number"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(AimcError, match=message):
        make()
