"""A fit finds the cell that made the curve."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aimc.cells import (
    ConstantStep,
    ExpStep,
    LinearStep,
    PiecewiseStep,
    PowStep,
    PulsedCell,
    SoftBounds,
    fit_cell,
)
from aimc.errors import AimcError
from aimc.random import Key, normal
from tests.helpers import assert_close
from tests.pulsed_cells import ALIKE, NO_POWERS, NO_SLOPES

NOISY = {"dw_min": 0.06, "dw_min_std": 0.3}


def measured(cell: PulsedCell, devices: int = 1, pulses: int = 1200, half: int = 60, seed: int = 2):
    """Values ``[devices, pulses]`` in uS and directions of ``half`` pulses up, ``half`` down, and so on."""
    p = cell.draw((devices, 1), Key(1))
    w = cell.snap(torch.zeros(devices, 1), p)
    up, values, noise = np.arange(pulses) % (2 * half) < half, [], normal(Key(seed), (pulses, devices, 1))
    for k, direction in enumerate(up):
        w = cell.step(w, p, torch.tensor(bool(direction)), noise[k])
        values.append(w[:, 0])
    return 20 + 10 * torch.stack(values, 1).double().numpy(), up


def saturating(pulses=100, half=25):
    """A curve of soft bounds without noise, and its directions."""
    up, w = np.arange(pulses) % (2 * half) < half, [0.0]
    for u in up[1:]:
        w.append(w[-1] + 0.1 * (1 - w[-1] if u else -1 - w[-1]))
    return np.array(w), up


CELLS = {
    "ConstantStep": ConstantStep(**{**ALIKE, "up_down": 0.3}, **NOISY),
    "LinearStep": LinearStep(**NO_SLOPES, **NOISY, gamma_up=0.6, gamma_down=0.3),
    "SoftBounds": SoftBounds(**{**ALIKE, "up_down": -0.3}, **NOISY),
    "PowStep": PowStep(**NO_POWERS, dw_min=0.2, dw_min_std=0.2, pow_gamma=2.5),
    "ExpStep": ExpStep(**ALIKE, **NOISY, A_up=0.1, A_down=0.05, gamma_up=2.2, gamma_down=3.0, a=1.0, b=0.0),
    "PiecewiseStep": PiecewiseStep(
        **ALIKE, **NOISY, piecewise_up=(1, 2, 0.5, 0.2), piecewise_down=(0.2, 0.5, 2.0, 1.0)
    ),
}


@pytest.mark.parametrize("name", CELLS)
def test_the_best_type_is_the_true_one_and_so_is_its_response(name):
    cell = CELLS[name]
    found = fit_cell(*measured(cell))
    assert found.kind == name, found
    assert found.r2 > 0.85 and found.curve_r2 > 0.9
    assert found.candidates[0][1] <= found.aic < found.candidates[0][1] + 4.001
    assert [aic for _, aic in found.candidates] == sorted(aic for _, aic in found.candidates)
    # The steps over the weight, in units of the measurement, where the curve has been.
    g = torch.linspace(float(found.values.min()), float(found.values.max()), 60, dtype=torch.float64)[5:-5]
    for up in (True, False):
        sizes = []
        for c, offset, scale in ((cell, 20.0, 10.0), (found.cell, found.offset, found.scale)):
            p = c.draw((1, 1), Key(0))[0, 0].double()
            sizes.append(scale * c.mean_change((g - offset) / scale, p, torch.tensor(up)).expand(g.shape))
        # The corners between four points are rounded off by nine, and the end of a power law is uncertain.
        assert_close(
            f"{name} {up}", sizes[1], sizes[0], atol=0.2 if name == "PiecewiseStep" else 0.06, rtol=0.05
        )
    assert found.cell.dw_min_std == pytest.approx(cell.dw_min_std, rel=0.1)


@pytest.mark.parametrize(
    "cell",
    [
        SoftBounds(**ALIKE, dw_min=0.1, dw_min_std=0.05),
        SoftBounds(**ALIKE, dw_min=0.1, dw_min_std=0.3),
        ConstantStep(**ALIKE, dw_min=0.05, dw_min_std=0.2),
        PowStep(**NO_POWERS, dw_min=0.2, dw_min_std=0.3, pow_gamma=2.5),
    ],
    ids=["soft", "soft_noisy", "constant", "pow"],
)
def test_a_saturated_curve_is_no_reason_for_more_parameters(cell):
    """Steps at a bound are most of such a curve; they must not pay for the 18 of a curve of nodes."""
    for seed in range(3):
        found = fit_cell(*measured(cell, pulses=240, seed=seed))
        assert found.kind == type(cell).__name__, (seed, found.candidates)
        assert found.cell.dw_min_std == pytest.approx(cell.dw_min_std, rel=0.3)
        if isinstance(cell, SoftBounds):
            point = found.cell.symmetry_point(found.cell.draw((1, 1), Key(0)))
            assert abs(found.offset + found.scale * float(point) - 20) < 10 * 0.3 * cell.dw_min_std


def test_a_saturated_curve_of_several_devices():
    found = fit_cell(*measured(SoftBounds(**ALIKE, dw_min=0.1, dw_min_std=0.3), devices=2, pulses=240))
    assert found.kind == "SoftBounds" and abs(found.cell.up_down) < 0.1


@pytest.mark.filterwarnings("error")
def test_a_curve_in_units_of_a_converter():
    """Steps of 0 are many, and no better known than others."""
    w, up = saturating(120, 30)
    found = fit_cell(np.round(50 + 20 * w), up)
    assert found.kind == "SoftBounds" and found.r2 > 0.9
    assert found.offset + found.scale * found.cell.w_max == pytest.approx(70, abs=0.5)
    # Of two states every pulse ends at an extreme.
    binary = np.arange(40) % 2
    assert fit_cell(binary, binary).kind == "ConstantStep"


def test_few_steps_are_no_reason_for_more_parameters():
    cell = SoftBounds(**ALIKE, dw_min=0.1, dw_min_std=0.5)
    for seed in (1, 2):
        found = fit_cell(*measured(cell, pulses=60, half=15, seed=seed))
        assert found.kind == "SoftBounds", (seed, found.candidates)


def test_the_fields_of_soft_bounds():
    cell = SoftBounds(**{**ALIKE, "w_max": 1.2, "up_down": -0.3}, **NOISY)
    found = fit_cell(*measured(cell, half=200), kind="SoftBounds")
    fitted, scale = found.cell, found.scale / 10
    assert found.offset + found.scale * fitted.w_max == pytest.approx(32, abs=0.2)
    assert found.offset + found.scale * fitted.w_min == pytest.approx(10, abs=0.2)
    assert fitted.dw_min * scale == pytest.approx(0.06, rel=0.2)
    assert fitted.mult_noise and found.steps == 1199 and found.devices == 1
    assert found.rmse * scale == pytest.approx(0.3 * 0.02, rel=0.5)


def test_additive_noise_is_told_from_multiplicative():
    for mult_noise in (True, False):
        found = fit_cell(*measured(SoftBounds(**ALIKE, **NOISY, mult_noise=mult_noise)), kind="SoftBounds")
        assert found.cell.mult_noise == mult_noise
        assert found.cell.dw_min_std == pytest.approx(0.3, rel=0.1)


def test_a_curve_without_noise_is_found_exactly():
    found = fit_cell(
        *measured(SoftBounds(**ALIKE, dw_min=0.06, dw_min_std=0.0), pulses=240), kind="SoftBounds"
    )
    assert found.r2 > 1 - 1e-6 and found.curve_r2 > 1 - 1e-6 and found.cell.dw_min_std < 1e-3
    assert found.offset + found.scale * found.cell.w_max == pytest.approx(30, abs=1e-3)
    assert_close("curve", torch.tensor(found.curve()), torch.tensor(found.values), atol=0.01)


def test_spread_of_several_devices():
    cell = SoftBounds(
        **NOISY, w_max=1.0, w_min=-1.0, dw_min_dtod=0.2, w_max_dtod=0.2, w_min_dtod=0.1, up_down_dtod=0.1
    )
    values, up = measured(cell, devices=150, pulses=480)
    found = fit_cell(values, np.tile(up, (150, 1)), kind="SoftBounds")
    assert found.devices == 150 and found.steps == 150 * 479
    for field, rel in (
        ("dw_min_dtod", 0.25),
        ("w_max_dtod", 0.25),
        ("w_min_dtod", 0.3),
        ("up_down_dtod", 0.25),
    ):
        assert getattr(found.cell, field) == pytest.approx(getattr(cell, field), rel=rel), field
    linear = LinearStep(**{**NO_SLOPES, "gamma_up_dtod": 0.2}, **NOISY, gamma_up=0.5, gamma_down=0.5)
    found = fit_cell(*measured(linear, devices=60, pulses=480), kind="LinearStep").cell
    assert found.gamma_up_dtod == pytest.approx(0.2, rel=0.3) and found.gamma_down_dtod < 0.1
    power = PowStep(**{**NO_POWERS, "pow_gamma_dtod": 0.2}, dw_min=0.2, dw_min_std=0.02, pow_gamma=2.0)
    found = fit_cell(*measured(power, devices=20, pulses=480), kind="PowStep").cell
    assert found.pow_gamma_dtod == pytest.approx(0.2, rel=0.5)


def test_directions_in_all_spellings():
    values, up = measured(CELLS["SoftBounds"], pulses=240)
    expected = fit_cell(values, up, kind="SoftBounds").cell
    for directions in (up.astype(int), np.where(up, 1, -1), list(map(bool, up)), up[None]):
        assert (
            fit_cell(values[0] if directions is not up[None] else values, directions, kind="SoftBounds").cell
            == expected
        )


def test_text_and_figure(tmp_path):
    found = fit_cell(*measured(CELLS["PowStep"], devices=2, pulses=240))
    text = str(found)
    for part in ("steps of 2 devices", "R2 0.", "value = ", "dw_min ", "pow_gamma ", "AIC: ", "SoftBounds -"):
        assert part in text, text
    assert found.kind in text.splitlines()[0]
    found.plot(tmp_path / "fit.png")
    assert (tmp_path / "fit.png").read_bytes()[:4] == b"\x89PNG"
    assert "_dtod" not in str(fit_cell(*measured(CELLS["SoftBounds"], pulses=240)))


UP20 = [True] * 10 + [False] * 10


@pytest.mark.parametrize(
    "values, directions, options, message",
    [
        (range(12), [1] * 6 + [0] * 6, {}, "'values': is too short"),
        (range(20), [1] * 20, {}, "'values': is too short"),
        ([float("nan"), *range(19)], UP20, {}, "'values', shape .*: holds NaN"),
        ([2.5] * 20, UP20, {}, "'values': is constant"),
        ([[1.0] * 20, [*range(20)]], UP20, {}, "'values': is constant"),
        (["a"] * 20, UP20, {}, "'values': must be numbers"),
        ([[1, 2], [3]], UP20, {}, "'values': must be numbers"),
        (np.zeros((2, 2, 20)), UP20, {}, "'values', shape .*: must be"),
        ([1e300 * k for k in range(20)], UP20, {}, "'values': are beyond 1e.30"),
        ([1e-300 * k for k in range(20)], UP20, {}, "'values': changes by less than 1e-30"),
        (range(20), UP20[:-1], {}, "'directions', shape .*: must have one direction for each of the 20"),
        (range(20), [2] * 20, {}, "'directions': must be 1 or True"),
        (range(20), ["up"] * 20, {}, "'directions': must be 1 or True"),
        (range(20), UP20, {"kind": "SoftBound"}, "'kind': .*did you mean 'SoftBounds'"),
        (range(20), UP20, {"nodes": 1}, "'nodes'"),
        (
            [k**2 for k in [*range(10), *range(10, 0, -1)]],
            UP20,
            {"kind": "SoftBounds"},
            "do not fit a SoftBounds",
        ),
    ],
)
def test_mistakes(values, directions, options, message):
    values = list(values) if isinstance(values, range) else values
    with pytest.raises(AimcError, match=message):
        fit_cell(values, directions, **options)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("kind", ["best", "SoftBounds"])
def test_a_curve_that_goes_the_wrong_way(noise, kind):
    w, up = saturating()
    w = w + noise * np.random.default_rng(0).normal(size=w.shape)
    for values, directions in ((100 - 10 * w, up), (1 / (5 + w), up), (w, ~up)):
        with pytest.raises(AimcError, match="'values': go the wrong way: .*inverse.*or swap the directions"):
            fit_cell(values, directions, kind=kind)
    with pytest.raises(AimcError, match="the wrong way in 1 of 3 devices, the first being 1:"):
        fit_cell([w, -w, w], up, kind=kind)


def test_a_curve_that_goes_one_way_only():
    w, up = saturating()
    for sign, message in ((1, "down pulses raise the value, too"), (-1, "up pulses lower the value, too")):
        with pytest.raises(AimcError, match=f"go one way only: {message}"):
            fit_cell(sign * np.linspace(0, 1, 100) ** 2, up)
    # Down pulses that do nothing but for noise are those of a device that only grows.
    noise = np.random.default_rng(1).normal(size=100)
    grown = np.cumsum(np.where(up, 0.1, 0.0)) + 0.001 * noise
    assert fit_cell(grown, up, kind="ConstantStep").cell.up_down > 0.99


def test_a_fit_that_explains_nothing_is_a_warning(recwarn):
    # All pulses raise the value by a fifth of their noise, which is not enough to say that down pulses do.
    values, up = np.cumsum(0.2 + np.random.default_rng(0).normal(size=120)), np.arange(120) % 2 == 0
    assert fit_cell(values, up, kind="ConstantStep").r2 <= 0
    (warning,) = recwarn
    assert "explains nothing of the steps (R2 -" in str(warning.message) and warning.filename == __file__


@pytest.mark.parametrize("kind", ["PiecewiseStep", "best"])
def test_a_rounding_below_zero_is_no_negative_step(kind, monkeypatch):
    """The solver ends at its bound, a little below 0, wherever the steps of a part of the range are 0."""
    from aimc.cells import fitting

    whole = fitting._fit

    def ends_below(which, devices):
        solutions, rss, aic = whole(which, devices)
        if len(solutions[0]) == 2 * fitting.NODES:
            solutions = [np.where(np.arange(len(theta)) == 3, -4.3e-9, theta) for theta in solutions]
        return solutions, rss, aic if len(solutions[0]) < 2 * fitting.NODES else aic - 1000

    monkeypatch.setattr(fitting, "_fit", ends_below)
    up = np.arange(200) % 100 < 50
    w = [0.0]
    for u in up[1:]:
        w.append(w[-1] + (0.1 * (1 - w[-1]) if u else -0.1 * (1 + w[-1])))
    found = fit_cell(w, up, kind=kind)
    assert found.kind == "PiecewiseStep" and min(found.cell.piecewise_up) == 0.0


def test_a_type_that_refuses_its_fields_leaves_the_others(monkeypatch):
    from aimc.cells import fitting

    def refused(name, *rest):
        if name in ("SoftBounds", "PiecewiseStep"):
            raise AimcError("no such cell", field="w_max")
        return made(name, *rest)

    made = fitting._cell
    monkeypatch.setattr(fitting, "_cell", refused)
    found = fit_cell([k**2 for k in [*range(10), *range(10, 0, -1)]], UP20)
    assert found.kind not in ("SoftBounds", "PiecewiseStep")
    with pytest.raises(AimcError, match="the steps do not fit a PiecewiseStep: .*no such cell"):
        fit_cell([k**2 for k in [*range(10), *range(10, 0, -1)]], UP20, kind="PiecewiseStep")
