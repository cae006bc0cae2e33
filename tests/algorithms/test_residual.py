"""Residual learning: the order of transfers, by hand, and what it does to the weight."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import aimc
from aimc.algorithms import LossRise, Residual, SlopeTest, SlowProgress, WarmStart
from aimc.algorithms.base import UPDATES
from aimc.algorithms.residual import HITS, VISITS
from aimc.cells import Ladder
from aimc.errors import AimcError
from aimc.ops.pulsed_update import PulseTrain, Vectors
from tests.algorithms.helpers import PLAIN, array_of, distance, fit, hardware_of, soft
from tests.helpers import assert_close
from tests.nn.pulsed_helpers import batch, loss_of, sgd, small_net
from tests.pulsed_cells import RANGE

# Four tiles, periods 1, 2 and 4.
CHAIN = {"tiles": 4, "period": 1, "period_growth": 2}


def transfers(order: str, updates: int, losses_every: int = 2, **warm) -> list[list[tuple[int, int]]]:
    """What is due after each update; every second epoch of two updates the loss rises."""
    algorithm = Residual(order=order, warm_start=WarmStart(rule=LossRise(), **warm), **CHAIN)
    array = array_of()
    state, found = algorithm.init(array, torch.zeros(6, 4)), []
    for u in range(1, updates + 1):
        found.append(algorithm.due(state))
        state["counters"][UPDATES] += 1
        if u % losses_every == 0:
            algorithm.observe(array, state, 1.0 if u % 4 else 1.1)
    return found


def test_the_order_of_the_paper():
    """Tile 0 into the active one after every mini-batch, and the chain besides."""
    found = transfers("paper", 14)
    for start, active in ((0, 3), (4, 2), (8, 1)):
        first = (0, active)
        assert found[start : start + 4] == [
            [first, (0, 1)], [first, (0, 1), (1, 2)], [first, (0, 1)], [first, (0, 1), (1, 2), (2, 3)],
        ]  # fmt: skip
    assert found[12:] == [[(0, 1)], [(0, 1), (1, 2)]]


def test_the_order_of_the_processor_program():
    """Tile 0 into the active one with the period of tile 1, and nothing else before the chain begins."""
    found = transfers("cpu", 20)
    assert found[:12] == [[], [(0, 3)], [], [(0, 3)], [], [(0, 2)], [], [(0, 2)], [], [(0, 1)], [], [(0, 1)]]
    assert found[12:16] == [[]] * 4  # the tile is its own source, and nothing moves until the next rise
    assert found[16:] == [[(0, 1)], [(0, 1), (1, 2)], [(0, 1)], [(0, 1), (1, 2), (2, 3)]]


def published(n: int, periods: tuple[int, ...], flags: list[bool]) -> list[list[tuple[int, int]]]:
    """The processor program as it was published, line by line, with one vector a mini-batch."""
    current, rounds, found = n - 1, 0, []
    for u, flag in enumerate(flags, 1):
        moved = []
        if flag and current >= 0:
            current -= 1
            if current < 0:
                rounds = 1
        if rounds < 1 and current >= 0 and u % periods[1] == 0:
            moved.append((0, current))
        if rounds >= 1:
            moved += [(j, min(j + 1, n - 1)) for j in range(n) if periods[j] > 0 and u % periods[j] == 0]
        found.append([(a, b) for a, b in moved if a != b])  # a tile onto itself: the program returns at once
    return found


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_processor_program_is_that_of_its_lines(seed):
    g = torch.Generator().manual_seed(seed)
    flags = (torch.rand(60, generator=g) < 0.12).tolist()
    algorithm = Residual(
        order="cpu", tiles=4, periods=(2, 3, 7), warm_start=WarmStart(rule=SlowProgress(window=1, count=1))
    )
    array, found = array_of(), []
    state = algorithm.init(array, torch.zeros(6, 4))
    for flag in flags:
        if flag:  # two equal values are a plateau
            algorithm.observe(array, state, 1.0)
            algorithm.observe(array, state, 1.0)
        found.append(algorithm.due(state))
        state["counters"][UPDATES] += 1
    assert found == published(4, (2, 3, 7, 0), flags) and algorithm.active_tile(state) is None


def test_without_a_warm_start_the_published_orders_are_one():
    weights = []
    for order in ("paper", "cpu", "cuda"):
        algorithm = Residual(order=order, fast_lr=0.2, scale_fast_lr=False, transfer_lr=1.0, **CHAIN)
        mean, state = fit(algorithm, soft(10), 0.1, 40)
        weights.append(mean)
        assert bool((state["counts"].sum((1, 2)) > 0).all())
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


def test_the_order_of_the_graphics_program():
    """Tile 0 into 1 always, and 1 into the active one with its own period."""
    found = transfers("cuda", 12)
    a = [(0, 1)]
    assert found[:8] == [a, [(0, 1), (1, 3)], a, [(0, 1), (1, 3)], a, [(0, 1), (1, 2)], a, [(0, 1), (1, 2)]]
    assert found[8:] == [a, [(0, 1), (1, 2)], a, [(0, 1), (1, 2), (2, 3)]]


def test_self_transfers_of_the_published_programs():
    """Tile 1 onto itself, then into tile 0; the chain waits for two more rises."""
    found = transfers("cuda", 20, self_transfer=True)
    a = [(0, 1)]
    assert found[8:16] == [a, [(0, 1), (1, 1)], a, [(0, 1), (1, 1)], a, [(0, 1), (1, 0)], a, [(0, 1), (1, 0)]]
    assert found[16:] == [a, [(0, 1), (1, 2)], a, [(0, 1), (1, 2), (2, 3)]]
    assert transfers("cpu", 18, self_transfer=True)[12:] == [
        [],
        [(0, 0)],
        [],
        [(0, 0)],
        [(0, 1)],
        [(0, 1), (1, 2)],
    ]


def test_source_and_period_of_a_warm_start_can_be_chosen():
    assert transfers("cpu", 2, source=1, period_of=0) == [[(1, 3)], [(1, 3)]]
    assert transfers("paper", 2, period_of=1) == [[(0, 1)], [(0, 3), (0, 1), (1, 2)]]


def test_the_first_target_of_a_warm_start_can_be_chosen():
    found = transfers("cpu", 16, target=2)
    assert found[:12] == [[], [(0, 2)], [], [(0, 2)], [], [(0, 1)], [], [(0, 1)], [], [], [], []]
    assert found[12:] == [[(0, 1)], [(0, 1), (1, 2)], [(0, 1)], [(0, 1), (1, 2), (2, 3)]]
    assert transfers("cpu", 12, target=3) == transfers("cpu", 12)


@pytest.mark.parametrize(
    ("order", "warm"),
    [
        ("cpu", {"target": 0}),
        ("cpu", {"target": 4}),
        ("cuda", {"target": 1}),
        ("cpu", {"target": 1, "source": 1}),
    ],
)
def test_a_target_that_the_source_cannot_fill_is_refused(order, warm):
    with pytest.raises(AimcError, match="'warm_start.target'.*above the source"):
        Residual(order=order, warm_start=WarmStart(**warm), **CHAIN)


@pytest.mark.parametrize(("order", "first"), [("paper", 0), ("cpu", 0), ("cuda", 0)])
def test_without_a_warm_start_the_chain_runs_at_once(order, first):
    algorithm = Residual(order=order, **CHAIN)
    state = algorithm.init(array_of(), torch.zeros(6, 4))
    found = []
    for _ in range(4):
        found.append(algorithm.due(state))
        state["counters"][UPDATES] += 1
    assert found == [[(0, 1)], [(0, 1), (1, 2)], [(0, 1)], [(0, 1), (1, 2), (2, 3)]]
    assert algorithm.active_tile(state) is None


def test_the_signal_of_a_layer_is_its_own_pulses():
    algorithm = Residual(order="cpu", warm_start=WarmStart(rule=LossRise(), signal="pulses"), **CHAIN)
    array = array_of()
    state = algorithm.init(array, torch.zeros(6, 4))
    total, actives = 0, []
    for pulses, loss in ((10, 1.0), (8, 9.0), (9, 9.0), (7, 9.0), (7, 1.0), (8, 1.0)):
        total += pulses
        state["statistics"][0, 2] = total
        algorithm.observe(array, state, loss)
        algorithm.due(state)
        actives.append(algorithm.active_tile(state))
    assert actives == [3, 3, 2, 2, 2, 1]
    assert state["values"][:2].tolist() == [7.0, 7.0]  # since the hit, before the last one


@pytest.mark.parametrize("signal", ["pulses", "loss"])
def test_the_layers_of_a_network_decide_each_for_itself_or_together(signal):
    """With pulses as the signal, each goes on when the rule is met on its own counts; with the loss, all at once."""
    rule = SlowProgress(window=1, count=1, difference=0.0)  # a value that is not below the one before
    algorithm = Residual(order="cpu", warm_start=WarmStart(rule=rule, signal=signal), **CHAIN)
    net = aimc.convert(small_net(), hardware_of(algorithm), seed=0)
    optimizer, layers = sgd(net), aimc.pulsed_layers(net)
    counted = {name: [0] for name in layers}
    losses: list[float] = []
    actives: dict[str, list[int | None]] = {name: [] for name in layers}
    for epoch in range(8):
        for step in range(3):
            optimizer.zero_grad()
            loss = loss_of(net, batch(5, seed=10 * epoch + step))
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
        for name, layer in layers.items():
            counted[name].append(int(layer.cells.state["statistics"][0, 2]))
        aimc.optim.observe(net, losses[-1])
        for name, layer in layers.items():
            actives[name].append(layer.telemetry()["active_tile"])
    for name in layers:
        values = [float(b - a) for a, b in zip(counted[name], counted[name][1:])]
        values, expected = values if signal == "pulses" else losses, []
        active, since, hits = 3, [], 0
        for value in values:
            expected.append(active - hits if active >= hits else None)  # the next step moves on
            since.append(value)
            if rule.hit(since, 0):
                hits, since = hits + 1, []
        assert actives[name] == expected, name
    assert (actives["0"] == actives["3"]) == (signal == "loss")


def test_a_long_warm_start_keeps_the_last_values():
    algorithm = Residual(order="cpu", warm_start=WarmStart(rule=LossRise(rise=1e9)), **CHAIN)
    array = array_of()
    state = algorithm.init(array, torch.zeros(6, 4))
    for k in range(70):
        algorithm.observe(array, state, float(k))
    assert state["values"].tolist() == [float(k) for k in range(6, 70)]


def test_each_transfer_has_the_rate_of_its_source():
    """One cell a tile: 0.2 * 1.0 / 0.1 is two slots in which the largest read fires for certain."""
    algorithm = Residual(
        order="paper", tiles=3, period=1, period_growth=1, transfer_lrs=(0.2, 0.4), fast_lr=1e-6
    )
    array = array_of(shape=(1, 1))
    state = algorithm.init(array, torch.zeros(1, 1))
    state["held"][0], state["held"][1] = 1.0, 0.0
    algorithm.step(array, state, Vectors(torch.ones(1, 1), torch.ones(1, 1)), 1.0)
    # Two pulses make 0.2 on tile 1, which is then read: 0.4 * 0.2 / 0.1 is 0.8 pulses on tile 2, one or none.
    assert state["counts"].flatten().tolist()[1] == 2 and state["counts"][2] <= 1
    assert float(state["held"][1]) == pytest.approx(0.2) and state["reads"].tolist() == [1, 1, 0]
    growing = Residual(tiles=4, order="paper", scale_transfer_lr=True)
    assert [growing.rate_of(t, 0.5) for t in range(3)] == pytest.approx([0.0864, 0.072, 0.06])
    assert [Residual(tiles=4).period_of(t) for t in range(3)] == [2, 10, 50]
    assert [Residual(tiles=3, order="paper", periods=(7, 3)).period_of(t) for t in range(2)] == [7, 3]


def test_shares():
    assert Residual(tiles=3, ratio=0.5).shares(array_of()) == (0.25, 0.5, 1.0)
    assert Residual(tiles=2, shares_of=(0.1, 2.0)).shares(array_of()) == (0.1, 2.0)
    assert Residual(tiles=2).shares(array_of(soft(100))) == pytest.approx((0.2, 1.0))  # 2 / sqrt(100)
    assert Residual(tiles=2).shares(array_of(soft(4))) == (0.4, 1.0)
    assert Residual(tiles=2, order="cuda").shares(array_of(soft(10))) == pytest.approx((0.125, 1.0))


def test_columns_per_visit():
    wide = array_of(shape=(100, 300))
    assert Residual(cells_per_visit=1000).columns_of(wide) == 10
    assert Residual(cells_per_visit=1).columns_of(wide) == 1
    assert Residual().columns_of(wide) == 163  # 16384 // 100
    assert Residual().columns_of(array_of(shape=(10, 20))) == 20
    assert Residual(columns=7).columns_of(wide) == 7 and Residual(columns="all").columns_of(wide) == 300
    assert Residual(order="paper").columns_of(wide) == 1


def test_visits_take_turns_and_stand_for_the_columns_that_wait():
    """With one column of three a visit, its gradient counts three times."""
    algorithm, array = Residual(tiles=2, columns=1, ratio=0.5, tries=9, rounding=0.0), array_of(shape=(1, 3))
    state = algorithm.init(array, torch.zeros(1, 3))
    x, d = torch.tensor([[1.0, 2.0, -1.0]]), torch.tensor([[1.0]])
    changes = []
    for _ in range(4):
        before = algorithm.weight(array, state).clone()
        algorithm.step(array, state, Vectors(x, d), 0.05)
        changes.append((algorithm.weight(array, state) - before)[0])
    # Multiples of 0.05, the step of tile 0, so that rounding at random has nothing to decide.
    expected = torch.tensor([[-0.15, 0, 0], [0, -0.3, 0], [0, 0, 0.15], [-0.15, 0, 0]])
    assert_close("changes", torch.stack(changes), expected, atol=1e-6)


@pytest.mark.parametrize("columns", [4, "all"])
def test_weight_decay_takes_the_same_share_whatever_a_visit_takes(columns):
    algorithm = Residual(tiles=5, columns=columns, weight_decay=0.5, ratio=0.4)
    array = array_of(shape=(30, 20))
    state = algorithm.init(array, torch.full((30, 20), 0.8))
    before = float(algorithm.weight(array, state).mean())
    for _ in range(20):
        algorithm.step(array, state, Vectors(torch.zeros(1, 20), torch.zeros(1, 30)), 0.1)
    every = 20 // algorithm.columns_of(array)  # steps from one visit of a column to the next
    expected = (1 - 0.1 * 0.5 * every) ** (20 / every)
    assert float(algorithm.weight(array, state).mean()) / before == pytest.approx(expected, rel=0.02)


def test_weight_decay_is_of_the_order_that_reads():
    with pytest.raises(AimcError, match="field 'weight_decay'.*'reencode'"):
        Residual(order="cpu", weight_decay=0.1)
    with pytest.raises(AimcError, match="field 'weight_decay'.*must not be negative"):
        Residual(weight_decay=-0.1)


@pytest.mark.parametrize(
    ("change", "last"), [(0.004, 0), (0.02, 0), (0.06, 1), (0.11, 2), (9.0, 2), (0.0, 0)]
)
def test_the_tile_that_rounds_is_as_fine_as_the_changes(change, last):
    """Steps of 0.025, 0.05 and 0.1; a few large changes among many small ones count most."""
    algorithm, array = Residual(tiles=3, ratio=0.5, tries=9, rounding=1.0), array_of(shape=(4, 6))
    state = algorithm.init(array, torch.zeros(4, 6))
    d, x = torch.zeros(1, 4), torch.ones(1, 6)
    d[0, 0] = change / 0.1
    algorithm.step(array, state, Vectors(x, d), 0.1)
    assert state["reads"].tolist()[:last] == [0] * last and int(state["reads"][last]) >= 6
    assert int(state["counts"][:last].sum()) == 0
    fixed = Residual(tiles=3, ratio=0.5, rounding=0.0)
    assert fixed.finest(array, torch.ones(4, 6), 9.0, fixed.shares(array)) == 0


def test_more_tiles_are_finer():
    errors = [
        distance(fit(Residual(tiles=tiles, rounding=0.0), soft(4), 0.1, 400, decay=1.0)[0])
        for tiles in (2, 3, 5)
    ]
    assert errors[0] > 1.5 * errors[1] > 4.5 * errors[2], errors
    assert errors[2] < 0.03


def test_a_ladder_of_four_levels_is_trained_too():
    mean, state = fit(Residual(tiles=6), Ladder(levels=4, **RANGE), 0.1, 600)
    assert distance(mean) < 0.1
    p = state["parameters"]
    assert torch.equal(
        torch.stack([Ladder(levels=4, **RANGE).snap(h, q) for h, q in zip(state["held"], p)]), state["held"]
    )


@pytest.mark.parametrize("name", ["tries", "last_tries"])
def test_tries_are_bounded(name):
    for value in (0, 1025):
        with pytest.raises(AimcError, match=f"field '{name}': is between 1 and 1024"):
            Residual(**{name: value})


def test_shares_that_are_not_positive_are_refused():
    with pytest.raises(AimcError, match="field 'shares_of'"):
        Residual(tiles=2, shares_of=(0.0, 1.0))
    assert min(Residual().shares(array_of(PLAIN))) > 0


def test_the_schedule_of_a_warm_start():
    """What runs when: in the text the chain always does, in the programs it waits (but for 0 to 1 on the GPU)."""
    array = array_of(soft(4), (128, 512))
    during, after = "during the warm start", "after the warm start"

    def lines(order, **settings):
        algorithm = Residual(
            tiles=4, order=order, warm_start=WarmStart(**settings), columns="all", period_growth=2
        )
        return [
            (t.source, t.target, t.passes_per_epoch, t.when) for t in algorithm.schedule(array, 120, 1, 0.1)
        ]  # fmt: skip

    chain = [(0, 1, 60.0), (1, 2, 30.0), (2, 3, 15.0)]
    assert lines("paper") == [(0, t, 60.0, during) for t in (3, 2, 1)] + [(*line, "") for line in chain]
    assert lines("cpu") == [(0, t, 30.0, during) for t in (3, 2, 1)] + [(*line, after) for line in chain]
    assert lines("cuda") == [(1, t, 30.0, during) for t in (3, 2)] + [
        (*line, when) for line, when in zip(chain, ("", after, after))
    ]
    assert lines("cpu", target=2, period_of=0)[:2] == [(0, 2, 60.0, during), (0, 1, 60.0, during)]
    slow = Residual(tiles=3, order="cpu", warm_start=WarmStart(), period_growth=2)
    found = slow.check(array, 100, 1, 0.1)
    assert [text.split(":")[0] for text in found] == [
        f"tile {t} is starved {when}" for t, when in ((2, during), (1, during), (1, after), (2, after))
    ]


def test_a_tile_that_cannot_reach_over_a_step_is_warned_of():
    """The range from bound to bound, 2, times the ratio, against a step of 2 / states."""
    array = array_of(soft(4))
    (found,) = Residual(tiles=2, ratio=0.2).check(array, 100, 8, 0.1)
    assert "tile 0 reaches over 0.4 from bound to bound" in found and "a step of tile 1 is 0.5" in found
    for ratio in (0.25, 0.4):
        assert Residual(tiles=2, ratio=ratio).check(array, 100, 8, 0.1) == []
    assert len(Residual(tiles=4, order="paper", ratio=0.01).check(array, 10_000, 8, 0.1)) == 3
    assert Residual(tiles=2, shares_of=(0.2, 0.7)).check(array, 100, 8, 0.1) == []


def test_what_was_collected_by_pulses_leaves_its_tile_however_much_it_is():
    """A train of 40 slots may move tile 0 by 40 steps; ``tries`` alone, 6, would leave most of it there."""
    cell = PLAIN.replace(dw_min=0.02)
    algorithm = Residual(
        tiles=2, gradient="pulsed", fast_lr=1.0, ratio=0.9, columns="all", tries=1, last_tries=1,
        pulses=PulseTrain(length=40),
    )  # fmt: skip
    array = array_of(cell, (1, 1))
    state = algorithm.init(array, torch.full((1, 1), 0.0))
    state["held"][0] = -0.8
    algorithm.step(array, state, Vectors(torch.zeros(1, 1), torch.zeros(1, 1)), 0.1)
    assert float(state["held"][1]) == pytest.approx(-0.72, abs=0.03)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_ladder_that_seldom_switches_is_written(backend):
    """A pulse that fails is seen; the nominal step of a level is that of a device that switches, not 0 below a half."""
    cell = Ladder(
        w_max=1.0, w_min=-1.0, levels=9, switch_up=(0.3,) * 8, switch_down=(0.3,) * 8, dw_min_dtod=0.0, w_max_dtod=0.0,
        w_min_dtod=0.0,
    )  # fmt: skip
    algorithm = Residual(tiles=2, columns="all", rounding=0.0, ratio=0.5)
    array = dataclasses.replace(array_of(cell, (200, 10)), backend=backend)
    state = algorithm.init(array, torch.zeros(200, 10))
    for _ in range(5):
        algorithm.step(array, state, Vectors(torch.eye(10), torch.ones(10, 200)), 0.05)
    assert (
        -0.25 < float(algorithm.weight(array, state).mean()) < -0.15
    )  # some of it fails on every tile that is tried


@pytest.mark.parametrize("asked", [-0.7, 0.1, 0.7])
def test_the_mean_change_is_what_was_asked_of_devices_that_differ(asked):
    """Of single devices, in steps of tile 0: what a pulse misses of its step, or does too much, is rounded again.

    Many draws from one state; most devices whose bounds and steps differ by 30 % are within 15 % of a step.
    """
    cell = soft(4).replace(dw_min_dtod=0.3, w_max_dtod=0.3, w_min_dtod=0.3, dw_min_std=0.3)
    algorithm = Residual(tiles=3, columns="all", rounding=0.0)
    array = array_of(cell, (12, 6))
    state = algorithm.init(array, 0.2 * torch.rand(12, 6, generator=torch.Generator().manual_seed(0)) - 0.1)
    g = torch.Generator().manual_seed(1)
    for _ in range(50):
        drawn = (torch.randn(4, n, generator=g) for n in (6, 12))
        algorithm.step(array, state, Vectors(*drawn), 0.02)
    unit, before, total = algorithm.shares(array)[0] * cell.granularity, algorithm.weight(array, state), 0.0
    draws = 1200
    for n in range(draws):
        copy = {name: value.clone() for name, value in state.items()}
        copy["counters"][VISITS] += 6 * n
        algorithm.step(array, copy, Vectors(torch.eye(6), torch.full((6, 12), -asked * unit)), 1.0)
        total = total + (algorithm.weight(array, copy) - before).double() / draws
    error = (total / unit - asked).abs()
    assert float(error.quantile(0.9)) < 0.15 and float((total / unit - asked).mean().abs()) < 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SlowProgress(window=64), "'window': is between 1 and 63, got 64"),
        (lambda: SlopeTest(window=65), "'window': is between 3 and 64, got 65"),
        (
            lambda: Residual(tiles=2, order="paper", warm_start=WarmStart(period_of=1)),
            "'warm_start.period_of': is 0 with two tiles",
        ),
    ],
)
def test_rules_that_could_never_act_are_refused(make, message):
    with pytest.raises(AimcError, match=message):
        make()


@pytest.mark.parametrize("rule", [SlowProgress(window=63), SlopeTest(window=64)])
def test_the_longest_windows_fire(rule):
    algorithm = Residual(tiles=3, order="paper", warm_start=WarmStart(rule=rule))
    array = array_of()
    state = algorithm.init(array, torch.zeros(array.shape))
    for _ in range(64):
        algorithm.observe(array, state, 1.0)
    assert int(state["counters"][HITS]) == 1
