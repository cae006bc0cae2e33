"""What holds for every algorithm: the fixed point, resuming, bodies, batches, telemetry, schedules, messages."""

from __future__ import annotations

import copy
import io
import math
import re
from pathlib import Path
from typing import Literal

import pytest
import torch

import aimc
from aimc import algorithms
from aimc.algorithms import (
    AnalogSGD,
    MixedPrecision,
    Residual,
    SlowProgress,
    TikiTakaV1,
    TikiTakaV2,
    TikiTakaV3,
    TikiTakaV4,
    Transfers,
    WarmStart,
)
from aimc.cells import ConstantStep
from aimc.errors import AimcError
from aimc.ops.pulsed_update import Patches, PulseTrain, Vectors
from tests.algorithms.helpers import (
    ALGORITHMS,
    PLAIN,
    RELATIVE,
    TARGET,
    array_of,
    distance,
    fit,
    hardware_of,
    projection,
    soft,
)
from tests.helpers import assert_close
from tests.nn.pulsed_helpers import NO_SPREAD, assert_same_cells, batch, cells_of, loss_of, sgd, small_net
from tests.pulsed_cells import PULSED

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)


def test_the_list_of_the_tests_is_complete():
    assert {type(a) for a in ALGORITHMS.values()} == set(algorithms.ALGORITHMS.values())
    residual = [a for a in ALGORITHMS.values() if isinstance(a, Residual)]
    assert {a.order for a in residual} == {"reencode", "paper", "cpu", "cuda"}
    assert {a.gradient for a in residual} == {"digital", "pulsed"}
    pages = Path(__file__).parents[2] / "docs" / "algorithms"
    table = (pages / "README.md").read_text()
    for name, kind in algorithms.ALGORITHMS.items():
        page = re.search(rf"\[{kind.__name__}\]\((\w+\.md)\) \| `{name}`", table)
        assert page is not None and f"`{kind.__name__}`" in (pages / page[1]).read_text(), name


# Fixed point ----------------------------------------------------------------------------------------------------------

ALWAYS = SlowProgress(window=1, count=1, difference=-1e9)
"""The warm start goes on after every second epoch, and is over after half of the steps."""


def _published(order: Literal["paper", "cpu", "cuda"], warm: WarmStart | None) -> Residual:
    return Residual(
        order=order, tiles=3, columns="all", fast_lr=0.2, scale_fast_lr=False, ratio=0.5, period=1, period_growth=2,
        transfer_lrs=(0.05, 0.02), warm_start=warm,
    )  # fmt: skip


FITS = {  # algorithm, states, tolerance of the relative error, steps
    "sgd": (AnalogSGD(), 200, 0.05, 1000),
    "ttv1": (TikiTakaV1(**RELATIVE, columns="all"), 200, 0.2, 1500),
    "ttv1 rows": (TikiTakaV1(**RELATIVE, columns="all", rows=True), 200, 0.2, 1500),
    "ttv2": (TikiTakaV2(**RELATIVE, columns="all"), 200, 0.2, 1500),
    "ttv3": (TikiTakaV3(columns="all", chop=0.02, auto_scale=False, fast_lr=5.0, scale_fast_lr=True, transfer_lr=0.2,
                        pulses=PulseTrain()), 200, 0.2, 1500),
    "ttv4": (TikiTakaV4(**RELATIVE, columns="all", auto_scale=False), 200, 0.05, 1500),
    "mp": (MixedPrecision(), 200, 0.02, 500),
    "residual": (Residual(), 4, 0.05, 600),
    "residual pulsed": (Residual(tiles=6, gradient="pulsed", columns="all", fast_lr=0.1, ratio=0.5), 10, 0.05, 1200),
    "residual paper": (Residual(order="paper", tiles=3, columns=4, fast_lr=0.2, scale_fast_lr=False, ratio=0.5,
                                transfer_lrs=(0.05, 0.02)), 10, 0.3, 1200),
    "residual published": (_published("cpu", None), 10, 0.25, 1200),  # without a warm start all three are one
    **{
        f"residual {order}, warm start": (_published(order, WarmStart(rule=ALWAYS)), 10, 0.25, 1200)
        for order in ("paper", "cpu", "cuda")
    },
    "residual cuda, onto itself": (_published("cuda", WarmStart(rule=ALWAYS, self_transfer=True)), 10, 0.25, 1200),
}  # fmt: skip


@pytest.mark.parametrize("name", FITS)
def test_the_weight_becomes_the_one_that_made_the_targets(name):
    algorithm, states, tolerance, steps = FITS[name]
    mean, state = fit(algorithm, soft(states), 0.1, steps)
    assert algorithm.active_tile(state) is None
    assert distance(mean) < tolerance
    p = state["parameters"]
    assert bool(((state["held"] <= p[..., 2]) & (state["held"] >= p[..., 3])).all())
    assert state["statistics"][:, 2].tolist() == state["counts"].sum((1, 2)).tolist()


def test_noise_draws_plain_descent_to_the_symmetry_point_and_the_others_less():
    """A pulse costs ``w`` of its step: w* - w = E|d x| w / E x^2, with E|x| E|d| = 2/pi times the deviation of d."""
    found, noise = {}, 0.5
    for name in ("sgd", "ttv1", "ttv4", "mp", "residual"):
        algorithm, states, _, _ = FITS[name]
        found[name] = projection(fit(algorithm, soft(states), 0.1, 800, noise)[0])
    deviation = math.sqrt(noise**2 + float(((1 - found["sgd"]) * TARGET).square().sum(1).mean()))
    assert found["sgd"] == pytest.approx(1 / (1 + 2 / math.pi * deviation), abs=0.05)
    assert found["sgd"] < 0.8 and all(v > 0.85 for name, v in found.items() if name != "sgd"), found


# Networks -------------------------------------------------------------------------------------------------------------

SIZES = (4, 1, 3, 2, 4, 3)
LOSSES = (1.0, 1.1, 1.0, 1.1, 1.2, 1.3)


def trained(net, steps, sizes=SIZES) -> list[float]:
    """Batches of different sizes; every one ends an epoch, so that a warm start moves on."""
    optimizer, losses = sgd(net, 0.2), []
    for k in steps:
        optimizer.zero_grad()
        loss = loss_of(net, batch(sizes[k], seed=k))
        loss.backward()
        optimizer.step()
        aimc.optim.observe(net, LOSSES[k])
        losses.append(float(loss.detach()))
    return losses


def through_a_file(net):
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = small_net()
    torch.nn.init.uniform_(other[3].weight, -2, 2)
    fresh = aimc.convert(other, net[0].hardware, seed=99)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


@every_algorithm
def test_a_straight_run_equals_stop_and_resume_and_a_copy(algorithm):
    net = aimc.convert(small_net(), hardware_of(algorithm), seed=0)
    trained(net, range(3))
    twins = [through_a_file(net), copy.deepcopy(net)]
    at_save = cells_of(net)
    losses = trained(net, range(3, 6))
    for twin in twins:
        assert_same_cells(cells_of(twin), at_save)
        assert trained(twin, range(3, 6)) == losses
        assert_same_cells(cells_of(twin), cells_of(net))


@every_algorithm
def test_the_reference_body_gives_the_same_cells(algorithm):
    hardware = hardware_of(algorithm, forward=None, backward=None)
    cells = []
    for backend in ("reference", "cpu"):
        net = aimc.convert(small_net(), hardware, seed=0, backend=backend)
        trained(net, range(2), sizes=(1, 2))
        cells.append(cells_of(net))
    assert_same_cells(*cells)
    assert all(int(v.sum()) > 0 for name, v in cells[0].items() if name.endswith("counts"))


@every_algorithm
def test_an_empty_batch_has_no_gradient(algorithm):
    array = array_of()
    state = algorithm.init(array, TARGET)
    g = torch.Generator().manual_seed(0)
    for n in (5, 0, 3):
        algorithm.step(
            array, state, Vectors(torch.randn(n, 4, generator=g), torch.randn(n, 6, generator=g)), 0.1
        )
    assert state["counters"][:2].tolist() == [3, 8]
    assert all(bool(torch.isfinite(v).all()) for v in state.values())
    fresh = algorithm.init(array, TARGET)
    before = algorithm.weight(array, fresh).clone()
    algorithm.step(array, fresh, Vectors(torch.zeros(0, 4), torch.zeros(0, 6)), 0.1)
    assert_close("weight", algorithm.weight(array, fresh), before, atol=1e-7)


UNTURNED = {"columns": 2, "pulses": PulseTrain(), "transfer_lr": 0.5}
FIRST = {  # what the gradient reaches first: a tile, what is written and waits, or the composite
    "sgd": (AnalogSGD(), "tile"),
    "ttv1": (TikiTakaV1(**RELATIVE, columns=2), "tile"),
    "ttv2": (TikiTakaV2(**RELATIVE, columns=2), "tile"),
    "ttv2 vectors": (TikiTakaV2(**RELATIVE, unit="vectors", period=3), "tile"),
    "ttv3": (TikiTakaV3(fast_lr=0.6 / 31, chop=0.0, **UNTURNED), "tile"),
    "ttv4": (TikiTakaV4(fast_lr=0.6 / 31, chop=1e-3, unit="vectors", period=4, **UNTURNED), "tile"),
    "mp": (MixedPrecision(period=2, most_pulses=1024), "written and waiting"),
    "residual": (Residual(tiles=3, ratio=0.4, rounding=0.0, tries=200), "composite"),
    "residual pulsed": (
        Residual(tiles=3, gradient="pulsed", ratio=0.4, tries=200, last_tries=1000),
        "composite",
    ),
    **{
        f"residual {order}": (Residual(tiles=3, order=order, columns=2), "tile")
        for order in ("paper", "cpu", "cuda")
    },
}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", FIRST)
def test_the_mean_update_follows_the_batch_size_in_any_order(name, backend):
    """One output of 8 inputs: n vectors of ones move the mean n times as far as one, after whatever batch before, and
    as far as in a new layer."""
    algorithm, what = FIRST[name]
    cell, kappa = ConstantStep(dw_min=1e-4, w_max=10.0, w_min=-10.0, **NO_SPREAD), 0.6
    array = array_of(cell, (1, 8), backend=backend)
    share = algorithm.shares(array)[0] if what == "composite" else 1.0
    lr, size = kappa * 1e-4 * share, 1e-4 * share

    def content(state) -> float:
        if what == "composite":
            return float(algorithm.weight(array, state).double().mean())
        waits = state["chi"].double().mean() if "chi" in state else 0.0
        return float(state["held"][0].double().mean() + waits)

    state = algorithm.init(array, torch.zeros(1, 8))
    p = kappa**0.5  # of rows and of columns, in one slot
    spread = (8 * p**2 * (1 - p**2) + 56 * p * (1 - p) * p**2) ** 0.5 / 8  # of the mean count of the devices
    for n in (1, 30, 1, 7) if backend == "reference" else (1, 256, 1, 7, 1000):
        for now in (state, algorithm.init(array, torch.zeros(1, 8))):
            before = content(now)
            algorithm.step(array, now, Vectors(torch.ones(n, 8), torch.full((n, 1), -1.0)), lr)
            off = (content(now) - before) / size - n * kappa
            # A composite is written anew, and may miss by a step of its finest tile.
            assert abs(off) < 4 * spread * n**0.5 + (what == "composite"), (n, off)


@every_algorithm
def test_convolutions_take_batches_of_any_size(algorithm):
    patches = Patches.of((4, 4), 1, (2, 2), (1, 1), (1, 1))
    array, g = array_of(), torch.Generator().manual_seed(0)
    state = algorithm.init(array, TARGET)
    for n in (2, 0, 1):
        x, d = torch.randn(n, 1, 4, 4, generator=g), torch.randn(n, 6, 9, generator=g)
        algorithm.step(array, state, Vectors(x, d, 1, patches), 0.1)
    assert state["counters"][:2].tolist() == [3, 27]
    assert int(state["counts"].sum()) > 0


@every_algorithm
def test_programming_resets_what_is_not_the_weight(algorithm):
    net = aimc.convert(small_net(), hardware_of(algorithm), seed=0)
    trained(net, range(4))
    layer = net[3]
    state, weight = layer.cells.state, torch.full_like(layer.weight, 0.005)
    digital = [n for n in ("buffer", "chi", "mean", "reference") if n in state]
    assert all(bool((state[n] != 0).any()) for n in digital)
    counts = state["counts"].clone()
    layer.program(weight)
    assert not any(bool((state[n] != 0).any()) for n in digital)
    array, noise = layer.array, state["w"] - state["held"]
    algorithm = layer.hardware.algorithm
    held = algorithm.weight(array, {n: v for n, v in state.items() if n != "w"}) * layer.scale
    held = held.view_as(weight)
    assert_close("weight", held, weight, atol=1e-3 * layer.scale)
    assert not bool((state["held"][:-1].abs() > 1e-6).any())
    assert torch.equal(state["counts"], counts)
    std = array.cell.write_noise_std * array.cell.dw_min
    assert abs(float(noise.std()) / std - 1) < 5 / math.sqrt(2 * noise.numel())


# Telemetry ------------------------------------------------------------------------------------------------------------


@every_algorithm
def test_telemetry_is_recounted(algorithm):
    net = aimc.convert(small_net(), hardware_of(algorithm), seed=0)
    trained(net, range(5))
    layer = net[3]
    state, found = layer.cells.state, layer.telemetry()
    n = 4 * 48
    shares = algorithm.shares(layer.array)
    parts = [float((abs(s) * w.double()).norm()) for s, w in zip(shares, state["w"])]
    for t, tile in enumerate(found["tiles"]):
        counts = sorted(state["counts"][t].flatten().tolist())
        p, held = state["parameters"][t].double(), state["held"][t].double()
        at = (held - p[..., 3]) / (p[..., 2] - p[..., 3])
        assert {name: value for name, value in tile.items() if name != "unanswered"} == pytest.approx({
            "pulses": sum(counts),
            "pulses_mean": sum(counts) / n,
            "pulses_p999": counts[math.ceil(0.999 * n) - 1],
            "pulses_max": counts[-1],
            "saturated": float(((at <= 0.01) | (at >= 0.99)).double().mean()),
            "share": parts[t] / sum(parts),
            "reads": int(state["reads"][t]),
            "clipped": tile["clipped"],
            "beyond_budget": tile["beyond_budget"],
        }, rel=1e-6, abs=1.01 / n)  # fmt: skip
        assert sum(counts) == state["statistics"][t, 2]
    assert found["active_tile"] == algorithm.active_tile(state)
    assert (found["updates"], found["vectors"]) == (5, sum(SIZES[:5]))
    assert sum(sum(state["counts"][t].flatten().tolist()) for t in range(len(shares))) > 0


def test_clipped_and_beyond_budget_are_shares():
    """Two rows, four vectors: one asks for 40 pulses of 31, one is empty; row 0 of the strong one is clipped."""
    algorithm, array = AnalogSGD(), array_of(shape=(2, 1))
    state = algorithm.init(array, torch.zeros(2, 1))
    x, d = (
        torch.tensor([[1.0], [1.0], [0.0], [1.0]]),
        torch.tensor([[4.0, 0.1], [0.1, 0.0], [1.0, 1.0], [0.1, 0.1]]),
    )
    algorithm.step(array, state, Vectors(x, d), 1.0)
    tile = algorithm.telemetry(array, state)["tiles"][0]
    assert tile["beyond_budget"] == 1 / 3  # of the vectors with an input and a gradient
    assert tile["clipped"] == 1 / 5  # of the rows with a gradient in them
    fresh = algorithm.telemetry(array, algorithm.init(array, torch.zeros(2, 1)))["tiles"][0]
    assert (fresh["clipped"], fresh["beyond_budget"], fresh["share"]) == (0.0, 0.0, 0.0)


def test_reads_are_counted():
    """Five mini-batches of seven vectors onto four columns."""
    for algorithm, expected in (
        (TikiTakaV1(period=2, columns=3), [6, 0]),
        (TikiTakaV1(columns="all"), [20, 0]),
        (TikiTakaV1(columns="all", rows=True), [30, 0]),
        (TikiTakaV1(columns=9, rows=True), [30, 0]),
        (TikiTakaV2(period=2), [2, 0]),
        (TikiTakaV2(unit="vectors", period=3, columns=2), [22, 0]),  # 35 vectors, 11 reads of two columns
        (TikiTakaV3(columns="all"), [20, 0]),
        (Residual(order="paper", tiles=3, period=1, period_growth=2, columns=2), [10, 4, 0]),
        (MixedPrecision(), [0]),
    ):
        array = array_of()
        state = algorithm.init(array, torch.zeros(6, 4))
        for k in range(5):
            g = torch.Generator().manual_seed(k)
            vectors = Vectors(torch.randn(7, 4, generator=g), torch.randn(7, 6, generator=g))
            algorithm.step(array, state, vectors, 0.1)
        assert state["reads"].tolist() == expected, algorithm
        assert state["counters"][:2].tolist() == [5, 35]


def test_mixed_precision_writes_whole_steps_after_every_period_th_mini_batch():
    """A gradient of -0.06 a mini-batch, in units of the cells; a pulse is worth 0.1 or what the threshold says."""
    x, d = torch.ones(1, 1), torch.full((1, 1), -0.6)
    for algorithm, counts, left in (
        (MixedPrecision(), [0, 1, 1, 2], 0.04),
        (MixedPrecision(period=2), [0, 1, 1, 2], 0.04),
        (MixedPrecision(period=3), [0, 0, 1, 1], 0.14),
        (MixedPrecision(threshold=0.5), [1, 2, 3, 4], 0.04),
        (MixedPrecision(threshold=0.25, most_pulses=1), [1, 2, 3, 4], 0.14),
    ):
        array, found = array_of(shape=(1, 1), scale=2.0), []
        state = algorithm.init(array, torch.zeros(1, 1))
        for _ in range(4):
            algorithm.step(array, state, Vectors(x, d), 0.2)
            found.append(int(state["counts"]))
        assert (found, float(state["chi"])) == (counts, pytest.approx(left, abs=1e-6)), algorithm
        assert float(state["held"]) == pytest.approx(0.1 * counts[-1])


# Schedules ------------------------------------------------------------------------------------------------------------


def test_schedules_by_hand():
    """Numbers of the published MNIST program: 7500 mini-batches an epoch; 427 epochs for a pass from tile 5 to 6."""
    fc1 = array_of(soft(4), (128, 512))
    published = Residual(tiles=7, order="cpu", ratio=0.5)
    found = published.schedule(fc1, 7500, 1, 0.05)
    assert [(t.source, t.target) for t in found] == [(k, k + 1) for k in range(6)]
    assert [1 / t.passes_per_epoch for t in found] == pytest.approx([2 * 5**k * 512 / 7500 for k in range(6)])
    assert found[5].columns_per_epoch == pytest.approx(1.2) and 1 / found[
        5
    ].passes_per_epoch == pytest.approx(427, abs=1)
    assert found[0].kappa == pytest.approx(0.1 * 1.2**6 * 1 / 0.5) and found[0].budget == 31
    conv2 = array_of(soft(4), (32, 400))
    assert 1 / published.schedule(conv2, 7500, 64, 0.05)[5].passes_per_epoch == pytest.approx(333, abs=1)
    # One line each of the others, on 6 x 4 cells with a range of 1 and a step of 0.1.
    for algorithm, line in (
        (TikiTakaV1(**RELATIVE, period=5, columns=2), Transfers(0, 1, 40.0, 10.0, 0.5 / 0.1, 31)),
        (TikiTakaV1(transfer_lr=1.0, scale_transfer_lr=False), Transfers(0, 1, 100.0, 25.0, 1 / 0.1, 31)),
        (TikiTakaV1(transfer_lr=1.0, rows=True, columns=3), Transfers(0, 1, 300.0, 50.0, 1 / 0.1, 31)),
        (TikiTakaV2(period=10, most_pulses=3), Transfers(0, 1, 10.0, 2.5, 0.0, 3)),
        (TikiTakaV3(unit="vectors", period=50, columns="all"), Transfers(0, 1, 64.0, 16.0, 0.0, 1)),
        (Residual(tiles=2, columns=1, tries=3), Transfers(0, 1, 100.0, 25.0, 0.0, 3)),
    ):
        assert algorithm.schedule(array_of(), 100, 8, 0.5) == [line]
    assert (
        AnalogSGD().schedule(array_of(), 100, 8, 0.5)
        == MixedPrecision().schedule(array_of(), 100, 8, 0.5)
        == []
    )


def test_starved_tiles_and_exceeded_budgets_are_warned_of():
    fc1 = array_of(soft(4), (128, 512))
    found = Residual(tiles=7, order="cpu").check(fc1, 7500, 1, 0.05)
    assert [text.split(":")[0] for text in found] == [f"tile {k} is starved" for k in (3, 4, 5, 6)]
    assert "1.2 of 512 columns" in found[-1] and "takes 427 epochs" in found[-1]
    found = TikiTakaV1(transfer_lr=40.0, scale_transfer_lr=True, columns="all").check(array_of(), 100, 8, 0.1)
    assert len(found) == 1
    assert "from tile 0 to 1 may ask for 40 pulses of a cell, the train has 31" in found[0]
    (found,) = TikiTakaV1(rows=True).check(array_of(), 3, 8, 0.1)
    assert "3 of 6 rows are transferred" in found and "more rows per event" in found
    assert len(TikiTakaV1(transfer_lr=4.0, scale_transfer_lr=False).check(array_of(), 3, 8, 0.1)) == 2
    # The largest read is the larger of the bounds.
    cell = PLAIN.replace(w_max=0.2, w_min=-0.6)
    (line,) = TikiTakaV1(transfer_lr=1.0, scale_transfer_lr=False).schedule(array_of(cell), 100, 8, 0.1)
    assert line.kappa == pytest.approx(0.6 / 0.1)


def test_choppers_that_hold_all_writes_back_are_warned_of():
    """Writes begin after ``1 / chop + 1`` passes, see the test of the reference in ``tests/ops/test_transfer.py``."""
    algorithm = TikiTakaV4(chop=0.1, unit="updates", columns=1)
    assert algorithm.check(array_of(), 4 * 11, 8, 0.1) == []
    (found,) = algorithm.check(array_of(), 4 * 10, 8, 0.1)
    assert "nothing is written to tile 1 in the first 1.1 epochs, 11 passes" in found
    (found,) = TikiTakaV4(chop=1e-12).check(array_of(), 60000, 8, 0.1)
    assert "nothing is written" in found


@every_algorithm
def test_no_warning_where_there_is_none(algorithm):
    assert algorithm.check(array_of(soft(20)), 100, 8, 0.1) == []


# Rates ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [True, False])
def test_what_a_schedule_of_the_optimizer_reaches(scaled):
    """``scale_fast_lr`` and ``scale_transfer_lr``: relative to the layer's rate, or on their own."""
    algorithm = TikiTakaV1(fast_lr=0.5, transfer_lr=3.0, scale_fast_lr=scaled, scale_transfer_lr=scaled)
    array = array_of(scale=2.0)
    assert algorithm.fast_rate(array, 0.1) == pytest.approx(0.025 if scaled else 0.25)
    assert algorithm.transfer_rate(0.1) == pytest.approx(0.3 if scaled else 3.0)


@every_algorithm
def test_descriptions_survive_a_file(algorithm):
    assert type(algorithm).from_yaml(algorithm.to_yaml()) == algorithm


# Messages -------------------------------------------------------------------------------------------------------------

WRONG = [
    *[(TikiTakaV1, {name: 0}, name) for name in ("period", "columns", "fast_lr", "transfer_lr")],
    (TikiTakaV1, {"transfer_pulses": PulseTrain(kind="none")}, "transfer_pulses.kind"),
    *[(TikiTakaV2, {name: 0}, name) for name in ("period", "columns", "fast_lr", "transfer_lr", "threshold")],
    (TikiTakaV2, {"auto_granularity": -1.0}, "auto_granularity"),
    (TikiTakaV2, {"auto_period": -1.0}, "auto_period"),
    (TikiTakaV2, {"auto_period": 1.0, "period": 2}, "period"),
    *[(TikiTakaV2, {"most_pulses": n}, "most_pulses") for n in (0, 1025)],
    *[(TikiTakaV2, {name: 1.5}, name) for name in ("momentum", "auto_momentum")],
    (TikiTakaV2, {"unit": "epochs"}, "unit"),
    *[(TikiTakaV2, {"pulses": PulseTrain(kind=kind)}, "pulses.kind") for kind in ("none", "none_bounded")],
    (TikiTakaV3, {"pulses": PulseTrain(fixed_length=False, length_management=False)}, "auto_scale"),
    *[(TikiTakaV3, {name: 1.1}, name) for name in ("chop", "row_chop")],
    (TikiTakaV4, {"tail_weighting": 0}, "tail_weighting"),
    (TikiTakaV4, {"chop": 0.0}, "chop"),
    *[(MixedPrecision, {name: 0}, name) for name in ("period", "threshold", "most_pulses")],
    *[(MixedPrecision, {name: 1}, name) for name in ("x_bins", "d_bins")],
    *[(Residual, {"tiles": n}, "tiles") for n in (1, 33)],
    *[
        (Residual, {name: 0}, name)
        for name in ("fast_lr", "transfer_lr", "columns", "ratio", "period", "threshold")
    ],
    *[(Residual, {name: 0}, name) for name in ("period_growth", "cells_per_visit", "tries", "last_tries")],
    *[(Residual, {name: -1.0}, name) for name in ("floor", "rounding", "transfer_growth")],
    *[(Residual, {name: (1, 2)}, name) for name in ("shares_of", "periods", "transfer_lrs")],
    (Residual, {"tiles": 2, "shares_of": (0.5, 1.0), "ratio": 0.5}, "ratio"),
    (Residual, {"transfer_pulses": PulseTrain(kind="none")}, "transfer_pulses.kind"),
    (Residual, {"warm_start": WarmStart()}, "warm_start"),
    (Residual, {"reset_chance": 0.5}, "reset_chance"),
    (Residual, {"rows": True}, "rows"),
    *[(kind, {"reset_chance": 1.5}, "reset_chance") for kind in (Residual, TikiTakaV1)],
    (Residual, {"order": "gpu"}, "order"),
    (Residual, {"gradient": "none"}, "gradient"),
    (WarmStart, {"source": 2}, "source"),
    (WarmStart, {"period_of": 3}, "period_of"),
    (WarmStart, {"signal": "accuracy"}, "signal"),
]


@pytest.mark.parametrize(("kind", "fields", "named"), WRONG, ids=[f"{k.__name__}-{n}" for k, _, n in WRONG])
def test_a_wrong_field_is_named(kind, fields, named):
    with pytest.raises(AimcError, match=f"field '{named}'"):
        kind(**fields)


@every_algorithm
def test_vectors_that_do_not_fit_or_are_not_finite_change_nothing(algorithm):
    array = array_of(PULSED["soft"])
    state = algorithm.init(array, torch.zeros(6, 4))
    before = {name: value.clone() for name, value in state.items()}
    for x, d in ((torch.ones(2, 5), torch.ones(2, 6)), (torch.full((2, 4), math.nan), torch.ones(2, 6))):
        with pytest.raises((AimcError, RuntimeError)):
            algorithm.step(array, state, Vectors(x, d), 0.1)
        assert all(torch.equal(v, before[name]) for name, v in state.items()), x.shape


@every_algorithm
def test_the_weight_goes_down_the_gradient(algorithm):
    """On the mean over the cells: choppers turn single ones round for a while."""
    array = array_of(PLAIN)
    state = algorithm.init(array, torch.zeros(6, 4))
    for _ in range(30):
        algorithm.step(array, state, Vectors(torch.ones(1, 4), torch.full((1, 6), 0.3)), 0.3)
    assert float(algorithm.weight(array, state).mean()) < -0.05
