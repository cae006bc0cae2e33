"""Cells that are pulsed one way: what reaches which of the two, and how pairs are reset and written anew."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import aimc
from aimc.algorithms import AnalogSGD, Array, MixedPrecision, Pair
from aimc.cells import ConstantStep
from aimc.cells.measured import pcm_pulsed
from aimc.errors import AimcError
from aimc.ops.pulsed_update import Patches, Vectors
from aimc.periphery import ArrayIO
from aimc.random import Key
from tests.algorithms.helpers import TARGET, fit
from tests.helpers import assert_close
from tests.nn.pulsed_helpers import NO_SPREAD, assert_same_cells, batch, cells_of, loss_of, sgd, small_net

ONE_WAY = ConstantStep(dw_min=1e-3, w_max=2.0, w_min=0.0, rest=0.0, reset_std=0.0, **NO_SPREAD)
STEPS = ONE_WAY.replace(dw_min=0.1)
"""Steps of 0.1 from 0 to 2."""


def array_of(cell=ONE_WAY, shape=(6, 4), **options) -> Array:
    return Array(cell, shape, Key(0), **options)


# What reaches which device --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "patches", [None, Patches.of((5, 5), 1, (2, 2), (1, 1), (1, 1))], ids=["linear", "conv"]
)
def test_products_that_raise_a_weight_reach_the_one_and_those_that_lower_it_the_other(patches):
    g = torch.Generator().manual_seed(0)
    if patches is None:
        vectors = Vectors(torch.randn(300, 4, generator=g), torch.randn(300, 6, generator=g))
    else:
        vectors = Vectors(
            torch.randn(20, 1, 5, 5, generator=g), torch.randn(20, 6, 16, generator=g), 1, patches
        )
    algorithm, array = AnalogSGD(pair=Pair(refresh=0)), array_of()
    state = algorithm.init(array, torch.zeros(6, 4))
    algorithm.step(array, state, vectors, 2e-4)
    x, d = (part[0] for part in vectors.unfolded())
    products = 2e-4 * d[:, :, None] * x[:, None]
    for t, expected in enumerate((products.clamp_min(0).sum(0), (-products).clamp_min(0).sum(0))):
        assert_close("counts", state["held"][t], state["counts"][t] * 1e-3, atol=1e-5)  # up pulses alone
        off = (state["held"][t] - expected) / (expected * 1e-3).sqrt()
        assert float(off.abs().max()) < 5 and float(off.mean().abs()) < 1
    assert state["counters"][:2].tolist() == [1, vectors.count]


def test_whole_steps_of_mixed_precision_reach_the_one_or_the_other():
    algorithm, array = MixedPrecision(pair=Pair()), array_of(STEPS, (1, 3), scale=2.0)
    state = algorithm.init(array, torch.zeros(1, 3))
    algorithm.step(array, state, Vectors(torch.tensor([[1.0, -0.5, 0.1]]), torch.tensor([[-0.68]])), 1.0)
    assert state["counts"][:, 0].tolist() == [[0, 1, 0], [3, 0, 0]]  # of 0.34, -0.17 and 0.034
    assert_close("waits", state["chi"], torch.tensor([[0.04, -0.07, 0.034]]), atol=1e-6)
    assert_close("weight", algorithm.weight(array, state), torch.tensor([[0.3, -0.1, 0.0]]), atol=1e-6)
    assert state["statistics"][:, 2].tolist() == [1, 3]


def test_weights_of_both_signs_are_written_exactly():
    for make in (AnalogSGD, MixedPrecision):
        algorithm, array = make(pair=Pair()), array_of(pcm_pulsed(w_max_dtod=0.0))
        state = algorithm.init(array, 4 * TARGET)
        assert_close("weight", algorithm.weight(array, state), 4 * TARGET, atol=1e-6)
        assert float(state["held"].min()) == 0.0 and algorithm.reach(array) == 2.0
        tiles = algorithm.telemetry(array, state)["tiles"]
        assert all(tile["saturated"] == 0 for tile in tiles)  # an empty device is not at its end
        state["held"][1, 0] = state["parameters"][1, 0, :, 2]
        assert algorithm.telemetry(array, state)["tiles"][1]["saturated"] == 4 / 24


# Refresh --------------------------------------------------------------------------------------------------------------


def refreshed(held, steps=1, pair=Pair(refresh=2), cell=STEPS, **options):
    """Some pairs ``[2, n]`` after so many mini-batches without a gradient."""
    algorithm = AnalogSGD(pair=pair)
    array = array_of(cell, (1, len(held[0])), **options)
    state = algorithm.init(array, torch.zeros(array.shape))
    state["held"].copy_(torch.tensor(held)[:, None])
    if "w" in state:
        state["w"].copy_(state["held"])
    for _ in range(steps):
        algorithm.step(array, state, Vectors(torch.zeros(1, array.shape[1]), torch.zeros(1, 1)), 0.1)
    return state


def test_full_pairs_are_reset_and_hold_what_they_held():
    """The first two are full; of the others the larger is not, or the smaller is nearly empty."""
    held = [[1.6, 1.4, 1.4, 0.4], [1.2, 1.9, 1.1, 1.9]]
    assert_close("not yet", refreshed(held, 1)["held"][:, 0], torch.tensor(held))
    state = refreshed(held, 2)
    now = state["held"][:, 0]
    assert_close("refreshed", now[:, :2], torch.tensor([[0.4, 0.0], [0.0, 0.5]]), atol=1e-5)
    assert_close("the others", now[:, 2:], torch.tensor(held)[:, 2:])
    assert state["counts"][:, 0].tolist() == [[4, 0, 0, 0], [0, 5, 0, 0]]  # steps of 0.1
    assert state["reads"].tolist() == [4 + 6 * 2] * 2  # once all, then the two until both are there
    never = refreshed(held, 4, Pair(refresh=0))
    assert int(never["counts"].sum()) == 0


def test_a_refresh_has_so_many_tries_and_reads_with_noise():
    assert refreshed([[1.6], [1.2]], 2, Pair(refresh=2, tries=3))["held"][:, 0, 0].tolist() == pytest.approx(
        [0.3, 0.0]
    )
    found = torch.stack([
        refreshed([[1.6], [1.2]], 2 * k, Pair(refresh=2 * k), transfer=ArrayIO(output_noise=0.1, adc=None))["held"]
        for k in range(1, 21)
    ])  # fmt: skip
    weight = found[:, 1] - found[:, 0]
    assert 0.05 < float(weight.std()) < 0.3 and abs(float(weight.mean()) + 0.4) < 0.15


def test_a_refresh_of_phase_change_memory_holds_the_weight_to_a_step():
    g = torch.Generator().manual_seed(0)
    held = (1.0 + torch.rand(2, 400, generator=g)).tolist()
    state = refreshed(held, 2, cell=pcm_pulsed(write_noise_std=0.0))
    before, after = torch.tensor(held), state["held"][:, 0]
    full = (before.amax(0) > 1.5) & (before.amin(0) > 0.5)
    change = (after[1] - after[0]) - (before[1] - before[0])
    assert bool(full.any()) and float(change[~full].abs().max()) < 1e-6
    assert float(change[full].abs().mean()) < 0.12 and float(after[:, full].amin(0).max()) < 0.1


def fitted(algorithm, steps=1500):
    mean, state = fit(algorithm, pcm_pulsed(), 0.2, steps, noise=0.5, decay=0.2)
    return float((mean - TARGET).norm() / TARGET.norm()), state


def test_pairs_learn_on_where_they_would_be_full():
    """The same noise fills pairs that are never reset."""
    error, state = fitted(MixedPrecision(pair=Pair(refresh=10)))
    full, stuck = fitted(MixedPrecision(pair=Pair(refresh=0)))
    assert error < 0.35 and full > 3 * error, (error, full)
    assert float(stuck["held"].mean()) > 1.5 > float(state["held"].mean()) + 0.2


# Networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [AnalogSGD, MixedPrecision])
@pytest.mark.parametrize("io_", ["perfect", "noisy"])
def test_a_network_of_pairs_trains_resumes_and_does_not_depend_on_the_body(make, io_):
    hardware = aimc.presets.pcm_pulsed(
        make(pair=Pair(refresh=2, upper=0.3, lower=0.0)), io=io_, write_noise_std=0.5
    )
    if io_ == "noisy":
        hardware = hardware.replace(forward=None, backward=None)  # these depend on the body's order of sums
    hardware = hardware.replace(**{"mapping.overflow": "clip"})

    def trained(net, steps):
        optimizer = sgd(net, 0.5)
        for k in steps:
            optimizer.zero_grad()
            loss_of(net, batch(3, seed=k)).backward()
            optimizer.step()

    nets = {b: aimc.convert(small_net(), hardware, seed=0, backend=b) for b in ("cpu", "reference")}
    trained(nets["reference"], range(4))
    trained(nets["cpu"], range(3))
    file = io.BytesIO()
    torch.save(nets["cpu"].state_dict(), file)
    file.seek(0)
    trained(nets["cpu"], range(3, 4))
    fresh = aimc.convert(small_net(), hardware, seed=5)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    trained(fresh, range(3, 4))
    assert_same_cells(cells_of(nets["cpu"]), cells_of(nets["reference"]))
    assert_same_cells(cells_of(nets["cpu"]), cells_of(fresh))
    state = nets["cpu"][3].cells.state
    assert int(state["reads"].sum()) > 0 and int(state["counts"].min(0).values.sum()) > 0


def test_conversion_writes_a_networks_weights_into_pairs():
    digital = nn.Linear(7, 5)
    layer = aimc.convert(digital, aimc.presets.pcm_pulsed(w_max_dtod=0.0), seed=0)
    x = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
    assert_close("output", layer(x), digital(x), atol=1e-5)
    assert layer.clipped == 0.0 and isinstance(layer.hardware.algorithm, MixedPrecision)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"refresh": -1}, "refresh"),
        ({"lower": 0.8}, "lower"),
        ({"upper": 1.0}, "upper"),
        ({"tries": 0}, "tries"),
    ],
)
def test_a_wrong_field_is_named(fields, named):
    with pytest.raises(AimcError, match=f"field '{named}'"):
        Pair(**fields)
