"""Drift compensation is measured: its bias is the published one, and it cannot know the time or the exponent."""

from __future__ import annotations

import functools
import inspect
import math

import pytest
import torch
from torch import nn

import aimc
from aimc.cells import PCM, Cell, TabulatedPCM
from aimc.chip import Compensation, ExactReference, LeastSquares, MeanAbs, PerColumn, TileReader
from aimc.crossbar import from_conductance, to_conductance
from aimc.nn.product import Periphery
from aimc.periphery import ADC, DAC, IRDrop
from aimc.random import Key
from tests.helpers import assert_close
from tests.moments import assert_moments

HOUR, YEAR = 3600.0, 31536000.0
SIZE = 512
TILE = torch.zeros(SIZE, dtype=torch.int64)
ESTIMATORS = {
    "mean_abs": MeanAbs(),
    "exact_reference": ExactReference(),
    "per_column": PerColumn(),
    "least_squares": LeastSquares(),
    "least_squares_per_column": LeastSquares(per="column"),
}

# ---------------------------------------------------------------- the published bias of each estimator

READER = TileReader(torch.ones(SIZE), Periphery(None, ADC(), 0.04, 0.0, None))
SEEDS = (0, 1)


@functools.cache
def aged(std: float, seed: int):
    """Target, programmed and one year old weights of one tile."""
    cell, key = PCM(), Key(seed)
    w = (torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * std).clamp(-1, 1)
    cells = cell.program(to_conductance(w, cell), key)
    return w, from_conductance(cells.conductance, cell), from_conductance(cell.read(cells, YEAR, key), cell)


def estimate(estimator: Compensation, std: float) -> float:
    total = 0.0
    for seed in SEEDS:
        _, fresh, old = aged(std, seed)
        key = Key(seed)
        if isinstance(estimator, LeastSquares):
            estimator = estimator.settle(READER, fresh, key.fold("probes"), key.fold("baseline"))
        baseline = estimator.measure(READER, fresh, key.fold("probes"), key.fold("baseline"))
        now = estimator.measure(READER, old, key.fold("probes"), key.fold("now"))
        factor = estimator.factor(baseline, now, TILE)
        assert factor.shape == (SIZE,) and bool((factor == factor[0]).all())
        total += float(factor[0])
    return total / len(SEEDS)


@pytest.mark.parametrize(
    "std, exact, one_hot, averaged, slope, optimum",
    [
        (0.2, 2.040, 1.926, 2.020, 1.868, 1.925),
        (0.1, 2.164, 1.788, 2.075, 1.859, 1.874),
        (0.05, 2.365, 1.462, 2.027, 1.804, 1.786),
    ],
)
def test_published_factors_at_one_year(std, exact, one_hot, averaged, slope, optimum):
    chips = [aged(std, seed) for seed in SEEDS]
    true = sum(float(fresh.abs().mean() / old.abs().mean()) for _, fresh, old in chips) / len(SEEDS)
    best = sum(float((fresh * old).sum() / (old * old).sum()) for _, fresh, old in chips) / len(SEEDS)
    assert true == pytest.approx(exact, rel=0.01)
    assert best == pytest.approx(optimum, rel=0.01)
    assert estimate(MeanAbs(), std) == pytest.approx(one_hot, rel=0.01)
    assert estimate(MeanAbs(averages=16), std) == pytest.approx(averaged, rel=0.01)
    assert estimate(LeastSquares(amplitude=1.0, probes=64), std) == pytest.approx(slope, rel=0.025)


def test_amplitude_avoids_saturation():
    """Full-scale probes clip 14 % of the outputs of a wide matrix and bias the slope; the chosen amplitude does not."""
    w, fresh, old = aged(0.3, 0)
    key = Key(0)
    loud = LeastSquares(amplitude=1.0)
    y = loud.measure(READER, fresh, key, key.fold(1))
    assert float((y.abs() > 9.99).float().mean()) == pytest.approx(0.14, abs=0.015)
    assert estimate(loud, 0.3) == pytest.approx(1.68, rel=0.01)
    settled = LeastSquares().settle(READER, fresh, key, key.fold(1))
    assert settled.amplitude is not None and 0.3 < settled.amplitude < 1
    y = settled.measure(READER, fresh, key, key.fold(1))
    assert float((y.abs() > 9.99).float().mean()) <= 1e-3
    assert float(y.std()) > 2, "and is not smaller than it must be"
    best = float((fresh * old).sum() / (old * old).sum())
    assert estimate(LeastSquares(), 0.3) == pytest.approx(best, rel=0.01)
    narrow = LeastSquares().settle(READER, aged(0.05, 0)[1], key, key.fold(1))
    assert narrow.amplitude == 1.0
    assert loud.settle(READER, fresh, key, key.fold(1)) == loud, "a given amplitude is kept"


def test_least_squares_beats_mean_abs_on_the_weights():
    for std, mean_abs, slope in ((0.25, 0.2135, 0.209), (0.1, 0.3905, 0.3631)):
        w, fresh, old = aged(std, 0)

        def error(factor, w=w, old=old):
            return float((factor * old - w).norm() / w.norm())

        assert error(float(fresh.abs().mean() / old.abs().mean())) == pytest.approx(mean_abs, rel=0.02)
        assert error(estimate(LeastSquares(), std)) == pytest.approx(slope, rel=0.02)


# ---------------------------------------------------------------- on a chip


def small_net(cell: Cell, seed: int = 0, tile_rows: int = 512, quiet: bool = True, **changes):
    torch.manual_seed(seed)
    digital = nn.Sequential(nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 6))
    hardware = (aimc.presets.ideal() if quiet else aimc.presets.pcm()).replace(cell=cell, **changes)
    return aimc.convert(digital, hardware.replace(**{"tile.rows": tile_rows}), seed=0).eval()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_exponent_is_undone_exactly(name):
    constant = TabulatedPCM(
        conductance=(0, 25), exponent_mean=(0.06, 0.06), exponent_std=(0, 0), read_noise_scale=0.0,
        programming_scale=0.0,
    )  # fmt: skip
    net = small_net(constant, tile_rows=20)
    chip = aimc.program(net, seed=1, compensation=ESTIMATORS[name])
    for time in (0.0, 1.0, HOUR, YEAR):
        expected = ((time + 20) / 20) ** 0.06
        with chip.at(time):
            for layer, factor in chip.compensation_factors().items():
                assert_close(layer, factor, torch.full_like(factor, expected), rtol=1e-3)
            for layer, weight in chip.weights().items():
                target = net.get_submodule(layer).weight.detach()
                assert_close(layer, weight, target, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_real_drift_is_not_undone(name):
    """Iso-accuracy over a year would be a bug: the spread of the exponents stays."""
    net = small_net(PCM(read_noise_scale=0.0, programming_scale=0.0), tile_rows=20)
    chip = aimc.program(net, seed=1, compensation=ESTIMATORS[name])
    for time, low, high in ((1.0, 1e-4, 0.02), (HOUR, 0.03, 0.12), (YEAR, 0.08, 0.35)):
        with chip.at(time):
            weights = chip.weights()
        for layer, weight in weights.items():
            target = net.get_submodule(layer).weight.detach()
            assert low < float((weight - target).norm() / target.norm()) < high, (layer, time)


def test_no_estimator_can_see_the_time():
    allowed = {
        "measure": ["self", "reader", "weight", "key", "noise"],
        "settle": ["self", "reader", "weight", "key", "noise"],
        "reference": ["self", "reader", "programmed", "target", "key", "noise"],
        "factor": ["self", "baseline", "now", "tile"],
    }
    kinds = [Compensation, *(type(e) for e in ESTIMATORS.values())]
    for kind in kinds:
        for method, names in allowed.items():
            assert list(inspect.signature(getattr(kind, method)).parameters) == names, (kind, method)
        own = {name for name, f in vars(kind).items() if inspect.isfunction(f) and not name.startswith("_")}
        assert own <= {*allowed, "validate"}, kind
        assert not set(kind.field_names()) & {"time", "t", "t0", "nu", "exponent", "cell"}
    assert {f for f in TileReader.__dataclass_fields__} == {"scale", "periphery", "backend"}
    assert {f for f in Periphery.__dataclass_fields__} == {
        "dac", "adc", "output_noise", "short_term_noise", "ir_drop", "wires",
    }  # fmt: skip


@pytest.mark.parametrize("name", ESTIMATORS)
def test_factors_follow_the_devices_and_not_the_clock(name, monkeypatch):
    """With devices that fade to a third whatever the time, and a cell whose constants are poisoned."""
    net = small_net(PCM(), tile_rows=20)
    chip = aimc.program(net, seed=1, compensation=ESTIMATORS[name])
    fade = {"by": 1.0}
    for held in chip._held.values():
        held.cells.exponent.fill_(math.nan)
        for field in ("t0", "t_read", "drift_scale"):
            object.__setattr__(held.hardware.cell, field, 1e30)

    def refuse(*args):
        raise AssertionError("an estimator asked the cell")

    for method in ("drift", "drift_exponent", "read_noise_std", "log_age", "log_read"):
        monkeypatch.setattr(PCM, method, refuse)
    monkeypatch.setattr(PCM, "read", lambda self, cells, t, key: fade["by"] * cells.conductance)
    factors = {}
    for by, time in ((1.0, 0.0), (1.0, YEAR), (1 / 3, 0.0), (1 / 3, 1.0), (1 / 3, YEAR)):
        fade["by"] = by
        with chip.at(time):
            factors[by, time] = chip.compensation_factors()
    for (by, time), found in factors.items():
        for layer, factor in found.items():
            assert_close("same devices, same factor", factor, factors[by, 0.0][layer])
            ratio = factor / factors[1.0, 0.0][layer]
            assert_close(f"{layer} at {time} s", ratio, torch.full_like(factor, 1 / by), rtol=1e-5)


def test_readings_pass_through_the_converters_and_their_noise():
    """A coarse converter must be felt by the estimate; a perfect one gives the exact ratio."""
    _, fresh, old = aged(0.05, 0)
    exact = float(fresh.abs().mean() / old.abs().mean())

    def ratio(adc, noise):
        reader = TileReader(torch.ones(SIZE), Periphery(None, adc, noise, 0.0, None))
        est, key = MeanAbs(), Key(0)
        base, now = est.measure(reader, fresh, key, key.fold(1)), est.measure(reader, old, key, key.fold(2))
        return float(est.factor(base, now, TILE)[0])

    assert ratio(None, 0.0) == pytest.approx(exact, rel=1e-5)
    assert ratio(None, 0.04) < 0.85 * exact
    assert abs(ratio(ADC(bits=7), 0.0) / exact - 1) > 0.1


def _wide(**changes):
    """512 inputs, and the factor with the least squared error of the weights after a year."""
    torch.manual_seed(0)
    layer = nn.Linear(512, 64, bias=False)
    with torch.no_grad():
        layer.weight.uniform_(-1, 1)
    hardware = aimc.presets.pcm().replace(**{"input_range.value": 1.0, **changes})
    return aimc.convert(layer, hardware, seed=0).eval()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_probes_survive_a_coarse_dac(bits, noisy, seed):
    """Their amplitude is below half a step; driven as single steps on fewer rows, the factor is right all the same."""
    quiet = {} if noisy else {"output_noise": 0.0, "short_term_noise": 0.0}
    net = _wide(**{"dac.bits": bits, "ir_drop": None}, **quiet)
    chip = aimc.program(net, seed=seed)
    with chip.at("1y"):
        aged = chip.weights(compensated=False)[""]
        best = float((aged * net.weight.detach()).sum() / aged.square().sum())
        assert float(chip.compensation_factors()[""].mean()) == pytest.approx(best, rel=0.05)


@pytest.mark.parametrize("estimator", [LeastSquares(), LeastSquares(per="column"), MeanAbs(), PerColumn()])
def test_what_converters_cannot_read_is_said(estimator):
    """No output reaches half a step of the ADC, and there is no noise that could lift one."""
    net = _wide(**{"adc.bits": 2, "adc.bound": 1e6, "output_noise": 0.0, "short_term_noise": 0.0})
    with torch.no_grad():
        net.weight[3] = 0
    with pytest.warns(UserWarning, match="could not read 63 of 64 columns"):
        chip = aimc.program(net, seed=0, compensation=estimator)
        with chip.at("1y"):
            assert bool((chip.compensation_factors()[""] == 1).all())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_layer_without_weights_stays_zero_and_says_nothing(name, recwarn):
    net = _wide()
    with torch.no_grad():
        net.weight.zero_()
    chip = aimc.program(net, seed=0, compensation=ESTIMATORS[name])
    with torch.no_grad(), chip.at("1y"):
        assert bool((net(torch.ones(2, 512)) == 0).all())
        assert bool((chip.compensation_factors()[""] == 1).all())
    assert not recwarn.list


def test_noise_is_not_made_into_a_factor():
    """Readings of nothing but noise, 20 times: none is taken for a signal."""
    for trial in range(20):
        before, after = (
            torch.randn(64, 8, generator=torch.Generator().manual_seed(2 * trial + k)) for k in (0, 1)
        )
        for estimator in (LeastSquares(), LeastSquares(per="column")):
            assert bool(estimator.factor(before, after, torch.zeros(8, dtype=torch.int64)).isnan().all())


def test_every_reading_has_its_own_noise():
    _, fresh, _ = aged(0.05, 0)
    key = Key(0)
    probes = torch.ones(3, SIZE)
    a, b = (READER.read(fresh, probes, key.fold(i)) for i in (1, 2))
    assert not torch.equal(a, b) and torch.equal(a, READER.read(fresh, probes, key.fold(1)))
    one, many = (MeanAbs(averages=n).measure(READER, 0 * fresh, key, key) for n in (1, 64))
    assert float(many.mean() / one.mean()) < 0.3, "averages are of independent readings"
    one, many = (LeastSquares(averages=n).measure(READER, 0 * fresh, key, key) for n in (1, 64))
    assert float(many.norm() / one.norm()) < 0.3


def test_factor_per_tile_and_per_column():
    """Columns that fade differently: one factor per physical tile mixes them, one per column does not."""
    now = torch.tensor([1.0, 0.5, 0.25, 0.5])
    base, tile = torch.ones(4), torch.tensor([0, 0, 1, 1])
    assert_close("tile", MeanAbs().factor(base, now, tile), torch.tensor([4 / 3, 4 / 3, 8 / 3, 8 / 3]))
    assert_close("column", PerColumn().factor(base, now, tile), 1 / now)
    assert_close(
        "tile", LeastSquares().factor(base[None], now[None], tile), torch.tensor([1.2, 1.2, 2.4, 2.4])
    )
    assert_close("column", LeastSquares(per="column").factor(base[None], now[None], tile), 1 / now)
    dark = torch.zeros(4)
    assert bool(LeastSquares(per="column").factor(dark[None], dark[None], tile).isnan().all())
    # A reading below the floor is none, and is not made into a factor.
    for estimator in (MeanAbs(floor=0.1), PerColumn(floor=0.1)):
        assert bool(estimator.factor(base, dark + 0.05, tile).isnan().all())
        assert not bool(estimator.factor(base, dark + 0.2, tile).isnan().any())


@pytest.mark.parametrize("estimator", [MeanAbs(), PerColumn()])
def test_what_coarse_converters_cannot_read_stays_uncompensated_and_is_said(estimator):
    hardware = aimc.presets.pcm().replace(**{"adc.bits": 4, "input_range.value": 1.0})
    torch.manual_seed(0)
    net = aimc.convert(nn.Sequential(nn.Linear(256, 32)), hardware, seed=0).eval()
    chip = aimc.program(net, seed=1, compensation=estimator)
    with pytest.warns(UserWarning, match="could not read .* of 32 columns"), chip.at("1y"):
        factor = net[0]._programmed.compensation
        assert bool(((factor >= 1) & (factor < 10)).all()) and bool((factor == 1).any())


@pytest.mark.parametrize("name", ["mean_abs", "per_column", "least_squares"])
def test_the_baseline_is_a_noisy_reading_of_the_programmed_array(name):
    """Not of the target, not of the conductances without read noise, and not past the converters."""
    net = small_net(PCM(), quiet=False, **{"input_range.value": 1.0})
    chip = aimc.program(net, seed=3, compensation=ESTIMATORS[name])
    for layer_name, held in chip._held.items():
        layer, key = net.get_submodule(layer_name), chip.key.fold(layer_name)
        estimator, baseline = held.estimators[0], held.baselines[0]
        probes, noise = key.fold("probes", 0), key.fold("baseline", 0)

        def measured(conductance, periphery, held=held, estimator=estimator, probes=probes, noise=noise):
            weight = from_conductance(conductance, held.hardware.cell) * held.scale[0][:, None]
            return estimator.measure(TileReader(held.scale[0], periphery, "auto"), weight, probes, noise)

        now = held.hardware.cell.read(held.cells, 0.0, key)
        assert_close("as read", baseline, measured(now, layer.periphery), rtol=1e-6)
        silent = Periphery(None, None, 0.0, 0.0, None)
        for other in (measured(held.cells.conductance, layer.periphery), measured(now, silent)):
            assert not torch.allclose(baseline, other, rtol=1e-6)


def test_exact_reference_takes_the_target():
    net = small_net(PCM(), quiet=False, **{"input_range.value": 1.0})
    chip = aimc.program(net, seed=3, compensation=ExactReference())
    for name, held in chip._held.items():
        weight = net.get_submodule(name).weight.detach()
        assert held.baselines is not None
        assert_close(name, held.baselines[0], weight.abs().mean(1) / weight.abs().amax(1), rtol=1e-5)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_compensation_helps(name):
    net = small_net(PCM(), quiet=False, **{"input_range.value": 1.0})
    chip = aimc.program(net, seed=3, compensation=ESTIMATORS[name])
    with chip.at("1y"):
        compensated, plain = chip.weights(), chip.weights(compensated=False)
    for layer, weight in compensated.items():
        target = net.get_submodule(layer).weight.detach()
        assert float((weight - target).norm()) < 0.75 * float((plain[layer] - target).norm())


@torch.no_grad()
def test_factor_multiplies_the_output_before_the_bias():
    torch.manual_seed(0)
    digital = nn.Linear(10, 4)
    hardware = aimc.presets.ideal().replace(cell=PCM(), **{"tile.rows": 5, "mapping.learned_gain": True})
    net = aimc.convert(digital, hardware).eval()
    net.output_gain.mul_(torch.tensor([1.0, 2.0, 0.5, -1.0]))
    chip = aimc.program(net, seed=0)
    x = torch.randn(3, 10)
    with chip.at("1y"):
        y, array, factor = net(x), chip.weights(compensated=False)[""], chip.compensation_factors()[""]
        weight = chip.weights()[""]
    assert bool((factor > 1.3).all()) and factor.shape == (2, 4) and not torch.equal(factor[0], factor[1])
    parts = sum((x[:, a:b] @ array[:, a:b].T) * factor[k] for k, (a, b) in enumerate(net.layout.row_splits))
    assert_close("output", y, parts * net.output_gain + digital.bias, atol=1e-5)
    assert_close("weights", x @ weight.T, parts, atol=1e-5)


def test_probes_pass_the_dac():
    reader = TileReader(torch.ones(2), Periphery(DAC(bits=3), None, 0.0, 0.0, None))
    y = reader.read(torch.eye(2), torch.tensor([[0.4, -0.6], [1.0, 0.1]]), Key(0))
    assert_close("on the grid", y, torch.tensor([[1 / 3, -2 / 3], [1.0, 0.0]]), atol=1e-6)


def test_readings_feel_ir_drop_and_short_term_noise():
    weight, probes = torch.eye(2).expand(2, 2), torch.ones(4000, 2)
    noisy = TileReader(torch.ones(2), Periphery(None, None, 0.0, 0.1, None)).read(weight, probes, Key(0))
    assert_moments("short-term noise", noisy, 1.0, 0.1)
    ir = IRDrop(scale=100_000.0)
    lossy = TileReader(torch.ones(2), Periphery(None, None, 0.0, 0.0, ir)).read(weight, probes[:1], Key(0))
    c = float(ir.coefficient(ir.load(2, torch.tensor(1.0))))
    assert_close("IR drop", lossy, torch.tensor([[1.0, 1 - 0.75 * c]]), rtol=1e-5)


def test_two_times_are_two_readings():
    """Devices that do not change at all still give factors that scatter around one, and anew at every time."""
    still = PCM(read_noise_scale=0.0, drift_scale=0.0, programming_scale=0.0)
    net = small_net(still, output_noise=0.1)
    chip = aimc.program(net, seed=1)
    found = []
    for time in ("0s", "1s", "1h"):
        with chip.at(time):
            found.append(float(chip.compensation_factors()["0"][0, 0]))
        with chip.at(time):
            assert found[-1] == float(chip.compensation_factors()["0"][0, 0])
    assert len({1.0, *found}) == 4
    assert found == pytest.approx([1.0] * 3, abs=0.02)
