"""Digital numbers, and what of an update does not arrive: by hand, and against the devices themselves."""

from __future__ import annotations

import pytest
import torch

import aimc
from aimc.algorithms import (
    AnalogSGD,
    MixedPrecision,
    Residual,
    TikiTakaV1,
    TikiTakaV2,
    TikiTakaV3,
    TikiTakaV4,
    losses,
)
from aimc.algorithms.losses import places
from aimc.algorithms.residual import VISITS
from aimc.ops.pulsed_update import Vectors
from aimc.periphery import ArrayIO
from tests.algorithms.helpers import ALGORITHMS, DETERMINISTIC, PLAIN, RELATIVE, array_of, hardware_of, soft
from tests.helpers import assert_close
from tests.nn.pulsed_helpers import small_net


@pytest.fixture
def every_transfer(monkeypatch):
    """Look at all columns of every transfer."""
    monkeypatch.setattr(losses, "EVERY", 1)


def random_vectors(seed: int, n: int = 5, scale: float = 1.0) -> Vectors:
    g = torch.Generator().manual_seed(seed)
    return Vectors(torch.randn(n, 4, generator=g), scale * torch.randn(n, 6, generator=g))


# Digital numbers ------------------------------------------------------------------------------------------------------


def test_digital_numbers_and_products_by_hand():
    """R = 6, C = 4: kept from step to step, needed within one, multiplications a vector."""
    for algorithm, numbers in (
        (AnalogSGD(), (0, 0, 0)),
        (TikiTakaV1(), (0, 6, 0)),
        (TikiTakaV1(rows=True), (0, 4, 0)),
        (Residual(tiles=5, order="paper", rows=True), (0, 4, 0)),
        (TikiTakaV2(), (24, 6, 0)),
        (TikiTakaV3(), (24 + 2 + 10, 6, 0)),  # two running means, ten signs
        (TikiTakaV3(auto_scale=False), (24 + 10, 6, 0)),
        (TikiTakaV4(), (3 * 24 + 2 + 10, 6, 0)),
        (MixedPrecision(), (24, 0, 24)),
        (Residual(tiles=5), (0, 24 + 6 * 7, 24)),
        (Residual(tiles=5, columns=3), (0, 18 + 6 * 7, 18)),
        (Residual(tiles=5, gradient="pulsed"), (0, 6 * 7, 0)),
        (Residual(tiles=5, order="cuda"), (0, 6, 0)),
    ):
        array = array_of()
        found = algorithm.telemetry(array, algorithm.init(array, torch.zeros(6, 4)))["digital"]
        assert (found["kept"], found["passing"], found["products"]) == numbers, algorithm


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_every_digital_tensor_of_a_state_is_counted(algorithm):
    array = array_of()
    state = algorithm.init(array, torch.zeros(6, 4))
    analog = {"held", "w", "parameters", "counts", "values", *algorithm.COUNTS}
    digital = {n: v for n, v in state.items() if v.is_floating_point() and n not in analog}
    assert algorithm.telemetry(array, state)["digital"]["kept"] == sum(v.numel() for v in digital.values())


# Devices that do not answer -------------------------------------------------------------------------------------------


def test_devices_that_do_not_answer_are_counted_for_each_tile(every_transfer):
    """Stuck ones, recounted from their parameters."""
    cell = PLAIN.replace(corrupt_probability=0.4)
    for algorithm in (
        MixedPrecision(),
        Residual(tiles=3, ratio=0.5, rounding=0.0),
        TikiTakaV2(**{**RELATIVE, "columns": "all", "transfer_lr": 9.0}),
    ):
        array = array_of(cell)
        state = algorithm.init(array, torch.zeros(6, 4))
        stuck = (state["parameters"][..., :2] == 0).all(-1)
        assert bool(stuck.any()) and not bool(stuck.all())
        pulsed, still = torch.zeros(len(stuck)), torch.zeros(len(stuck))
        for k in range(4):
            before = state["counts"].clone()
            algorithm.step(array, state, random_vectors(k, scale=0.3), 0.3)
            pulses = state["counts"] - before
            once = pulses == 1 if isinstance(algorithm, Residual) else pulses > 0
            pulsed, still = pulsed + once.sum((1, 2)), still + (once & stuck).sum((1, 2))
        rows = (
            slice(1, None) if isinstance(algorithm, TikiTakaV2) else slice(None)
        )  # the fast tile takes trains
        assert torch.equal(state["answers"][rows, 0].float(), pulsed[rows]), algorithm
        assert torch.equal(state["answers"][rows, 1].float(), still[rows]), algorithm
        tile = algorithm.telemetry(array, state)["tiles"][-1]
        assert 0.05 < tile["unanswered"] == int(still[-1]) / int(pulsed[-1])


def test_who_does_not_look_says_so():
    for algorithm in (AnalogSGD(), TikiTakaV1(), Residual(order="paper"), TikiTakaV2(unit="vectors")):
        array = array_of()
        state = algorithm.init(array, torch.zeros(6, 4))
        algorithm.step(array, state, random_vectors(0), 0.1)
        found = algorithm.telemetry(array, state)
        assert found["lost"] is None and all(tile["unanswered"] is None for tile in found["tiles"])


# Content that is lost -------------------------------------------------------------------------------------------------


def test_a_residual_that_no_tile_takes_is_lost(every_transfer):
    """Every device stuck: all is lost but what rounding may miss. Ideal devices lose nothing."""
    for chance, expected in ((1.0, (0.4 - 2 * 0.025) / 0.4), (0.0, 0.0)):
        algorithm = Residual(tiles=3, ratio=0.5, rounding=0.0, tries=9, last_tries=9)
        array = array_of(PLAIN.replace(corrupt_probability=chance))
        state = algorithm.init(array, torch.zeros(6, 4))
        algorithm.step(array, state, Vectors(torch.ones(1, 4), torch.ones(1, 6)), 0.4)
        asked, lost = state["content"].tolist()
        assert asked == pytest.approx(24 * 0.4 / 0.025)
        assert lost / asked == pytest.approx(expected, abs=1e-5) == algorithm.telemetry(array, state)["lost"]


@pytest.mark.parametrize(
    ("fields", "lost", "waiting"),
    [
        ({"forget": True, "momentum": 0.1}, 3.7 - 1 - 0.37, 0.0),
        ({"forget": True, "momentum": 0.1, "most_pulses": 3}, 3.7 - 3 - 0.37, 0.0),
        ({"forget": False, "momentum": 0.0}, 0.0, 1.0),
        ({"forget": True, "momentum": 1.0}, 0.0, 1.0),  # all of it stays, although pulses were sent
    ],
)
def test_what_a_buffer_forgets_is_lost(every_transfer, fields, lost, waiting):
    """The fast tile moves by -0.2 (deterministic); 3.7 pulses' worth is read of it."""
    algorithm = TikiTakaV2(
        **{**RELATIVE, "columns": "all", "transfer_lr": 0.37 / 0.2 / 0.2}, pulses=DETERMINISTIC, **fields
    )
    array = array_of()
    state = algorithm.init(array, torch.zeros(6, 4))
    algorithm.step(array, state, Vectors(torch.ones(1, 4), torch.ones(1, 6)), 0.2)
    assert state["content"].tolist() == pytest.approx([24 * 3.7, 24 * lost], abs=2e-3)
    found = algorithm.telemetry(array, state)
    assert found["lost"] == pytest.approx(lost / 3.7, abs=1e-4) and found["waiting"] == waiting


@pytest.mark.parametrize("columns", [1, 3, "all"])
@pytest.mark.parametrize("kind", [TikiTakaV2, TikiTakaV3, TikiTakaV4])
def test_a_buffer_that_keeps_its_remainder_loses_nothing(every_transfer, kind, columns):
    """Reads with noise, choppers and references are repeated exactly, or content would seem to be lost."""
    more = {} if kind is TikiTakaV2 else {"chop": 0.5, "auto_scale": False}
    algorithm = kind(
        **{**RELATIVE, "columns": columns, "transfer_lr": 5.0},
        momentum=0.0,
        forget=False,
        most_pulses=9,
        **more,
    )
    array = array_of(soft(20), transfer=ArrayIO(output_noise=0.05))
    state = algorithm.init(array, torch.zeros(6, 4))
    for k in range(60):
        algorithm.step(array, state, random_vectors(k, scale=0.3), 0.2)
    asked, lost = state["content"].tolist()
    assert int(state["counts"][1].sum()) > 50 and asked > 50 and lost < 1e-5 * asked


def test_mixed_precision_loses_nothing_and_says_what_waits():
    algorithm, array = MixedPrecision(most_pulses=1), array_of()
    state = algorithm.init(array, torch.zeros(6, 4))
    d = torch.zeros(1, 6)
    d[0, :3] = 1.0  # 0.25, of which 0.15 waits: more than a step
    algorithm.step(array, state, Vectors(torch.ones(1, 4), d), 0.25)
    found = algorithm.telemetry(array, state)
    assert (found["lost"], found["waiting"]) == (0.0, 0.5)


# Where it looks -------------------------------------------------------------------------------------------------------


def test_every_column_is_looked_at_in_turn():
    wide = array_of(shape=(1000, 10))
    assert places(wide, 1, 10) is None and places(array_of(shape=(0, 4)), 0, 4) is None
    found = [places(wide, number, 10) for number in range(0, 16 * 5, 16)]
    assert [p.tolist() for p in found if p is not None] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5], [6, 7, 8, 9],
    ]  # fmt: skip


def test_a_state_without_counts_is_still_loaded():
    """Of an earlier version: the counts start at zero, and everything else is as it was."""
    hardware = hardware_of(Residual(tiles=3))
    net = aimc.convert(small_net(), hardware, seed=0)
    saved = {
        n: v.clone()
        for n, v in net.state_dict().items()
        if not n.endswith(("cells.answers", "cells.content"))
    }
    net[3].cells.state["answers"] += 3
    net[3].cells.state["held"][0] += 0.01
    net.load_state_dict(saved)
    state = net[3].cells.state
    assert int(state["answers"].sum()) == 0 and torch.equal(state["held"], saved["3.cells.held"])


def test_a_visit_of_all_columns_may_begin_anywhere():
    """As after a training with other ``columns``: every column gets its own gradient."""
    algorithm, array = (
        Residual(tiles=2, columns="all", ratio=0.5, tries=9, rounding=0.0),
        array_of(shape=(1, 3)),
    )
    state = algorithm.init(array, torch.zeros(1, 3))
    state["counters"][VISITS] = 2
    algorithm.step(array, state, Vectors(torch.tensor([[1.0, 2.0, -1.0]]), torch.ones(1, 1)), 0.05)
    assert_close("weight", algorithm.weight(array, state), torch.tensor([[-0.05, -0.1, 0.05]]), atol=1e-6)
