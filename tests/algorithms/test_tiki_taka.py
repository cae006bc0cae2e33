"""The Tiki-Taka family: choppers in the weight that is read, large convolutions, hidden arrays in files."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import aimc
from aimc.algorithms import (
    Algorithm,
    MixedPrecision,
    Residual,
    TikiTakaV1,
    TikiTakaV2,
    TikiTakaV3,
    TikiTakaV4,
)
from aimc.algorithms.base import UPDATES
from aimc.cells import SoftBounds
from aimc.errors import AimcError
from aimc.ops.pulsed_update import PulseTrain, Vectors
from tests.algorithms.helpers import DETERMINISTIC, PLAIN, RELATIVE, array_of, soft
from tests.helpers import assert_close
from tests.nn.pulsed_helpers import NO_SPREAD, STEP, sgd

CHOPPED = {
    "linear": (lambda: nn.Linear(3, 2, bias=False), (5, 3)),
    "one row": (lambda: nn.Linear(4, 1, bias=False), (5, 4)),
    "one column": (lambda: nn.Linear(1, 4, bias=False), (5, 1)),
    "convolution": (lambda: nn.Conv1d(1, 3, 3, bias=False), (2, 1, 6)),
    "groups": (lambda: nn.Conv2d(2, 2, (1, 3), groups=2, bias=False), (2, 2, 2, 5)),
}


@pytest.mark.parametrize("name", CHOPPED)
@pytest.mark.parametrize("kind", [TikiTakaV3, TikiTakaV4])
@pytest.mark.parametrize("write_noise", [0.0, 0.5])
def test_choppers_and_a_residual_weight(name, kind, write_noise):
    """The weight is C + gamma (c_d c_x^T) * A for every pattern of signs; a sign turned with its A is no change."""
    make, shape = CHOPPED[name]
    hardware = aimc.PulsedHardware(
        cell=STEP.replace(write_noise_std=write_noise),
        algorithm=kind(gamma=0.5),
        mapping=aimc.PulsedMapping(scale=1.0),
    )
    layer = aimc.convert(make(), hardware, seed=0)
    state, g = layer.cells.state, torch.Generator().manual_seed(0)
    rows, columns = state["held"].shape[1:]
    a, c = torch.randn(rows, columns, generator=g), torch.randn(rows, columns, generator=g)
    x = torch.randn(shape, generator=g)
    read = state["w" if write_noise else "held"]  # with write noise, what is held does not show
    outputs = []
    for signs in itertools.product((1.0, -1.0), repeat=rows + columns):
        d_sign, x_sign = torch.tensor(signs[:rows]), torch.tensor(signs[rows:])
        read[0], read[1] = a, c
        state["chopper_d"].copy_(d_sign)
        state["chopper_x"].copy_(x_sign)
        layer.refresh()
        expected = c + 0.5 * torch.outer(d_sign, x_sign) * a
        assert_close("weight", layer.weight.flatten(1), expected, atol=1e-6)
        read[0] = a * torch.outer(d_sign, x_sign)
        layer.refresh()
        outputs.append(layer(x).detach())
    for y in outputs[1:]:
        assert_close("outputs", y, outputs[0], atol=1e-6)
    # Without a share the fast array does not show, whatever the signs.
    assert torch.equal(kind().weight(array_of(shape=(rows, columns)), dict(state)), c)


def test_without_choppers_the_shares_are_those_of_the_fields():
    for algorithm in (TikiTakaV1(gamma=0.25), TikiTakaV2(gamma=0.25)):
        array = array_of()
        state = algorithm.init(array, torch.zeros(6, 4))
        state["held"][0], state["held"][1] = 0.4, 0.1
        assert_close("weight", algorithm.weight(array, state), torch.full((6, 4), 0.2), atol=1e-7)


# Large convolutions ---------------------------------------------------------------------------------------------------


BY_VECTORS = {**RELATIVE, "scale_transfer_lr": False, "unit": "vectors", "period": 500, "columns": 5}
CHOPS = {
    "auto_scale": False,
    "pulses": PulseTrain(),
}  # means that follow mini-batches know how many there were
LARGE = {
    "ttv2": TikiTakaV2(**BY_VECTORS),
    "ttv3": TikiTakaV3(**BY_VECTORS, **CHOPS, row_chop=0.1),
    "ttv4": TikiTakaV4(**BY_VECTORS, **CHOPS),
    "mp": MixedPrecision(most_pulses=1024),  # with fewer, more of one update than of ten waits
}


def large_update(
    algorithm: Algorithm, seed: int, chunks: int, images: torch.Tensor, grad: torch.Tensor
) -> torch.Tensor:
    """What the fast tile and the weight of ``Conv2d(1, 3, 5)`` are after all images in so many updates."""
    cell = SoftBounds(dw_min=1e-3, w_max=1.0, w_min=-1.0, **{**NO_SPREAD, "dw_min_std": 0.3})
    layer = aimc.convert(
        nn.Conv2d(1, 3, 5, bias=False), aimc.PulsedHardware(cell=cell, algorithm=algorithm), seed=seed
    )
    layer.program(torch.zeros(3, 1, 5, 5))
    optimizer = sgd(layer, 1e-4)
    for x, d in zip(images.chunk(chunks), grad.chunk(chunks)):
        layer(x).backward(d)
        optimizer.step()
    state = layer.cells.state
    fast, weight = state["held"][0], algorithm.weight(layer.array, state)
    if "chopper_x" in state:
        fast = torch.outer(state["chopper_d"], state["chopper_x"]) * fast
    if "chi" in state:
        weight = weight + state["chi"]  # what waits to be written
    assert all(bool(v.isfinite().all()) for v in state.values()) and int(state["counts"][-1].sum()) > 0
    return torch.stack([fast, weight])


def large(dense: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """128 images of 28 x 28 positions are 100352 vectors; behind a pooling layer only some have a gradient."""
    g = torch.Generator().manual_seed(0)
    images, grad = torch.rand(128, 1, 32, 32, generator=g), torch.randn(128, 3, 28, 28, generator=g)
    some = torch.rand(grad.shape, generator=g) < 0.02
    return images, 0.02 * (grad + 0.3) if dense else torch.where(some, grad + 0.3, 0.0)


POSITIONS = pytest.mark.parametrize("dense", [False, True], ids=["few positions", "every position"])


@POSITIONS
@pytest.mark.parametrize("name", LARGE)
def test_a_large_convolution_in_one_update_has_the_law_of_ten(name, dense):
    images, grad = large(dense)
    one = torch.stack([large_update(LARGE[name], seed, 1, images, grad) for seed in range(6)])
    ten = torch.stack([large_update(LARGE[name], 100 + seed, 10, images, grad) for seed in range(6)])
    for t in range(2):
        a, b = one[:, t].mean((1, 2)).double(), ten[:, t].mean((1, 2)).double()  # means over 75 cells
        error = float((a.var() / len(a) + b.var() / len(b)).sqrt())
        assert abs(float(a.mean() - b.mean())) < 4 * error, t
    assert float(a.mean()) < -10 * float(a.std()) / len(a) ** 0.5  # the weight moved
    bad = images[:2].clone()
    bad[0, 0, 3, 3] = torch.nan
    with pytest.raises(AimcError, match="NaN"):
        large_update(LARGE[name], 0, 1, bad, grad[:2])


@POSITIONS
@pytest.mark.parametrize("gradient", ["digital", "pulsed"])
def test_a_large_convolution_in_one_update_of_several_tiles_is_finite(gradient, dense):
    """A mini-batch moves a weight by so many tries at most, so that ten move it further."""
    images, grad = large(dense)
    moved = [
        float(large_update(Residual(tiles=3, gradient=gradient), 0, chunks, images, grad)[1].mean())
        for chunks in (1, 10)
    ]
    assert moved[1] < 2 * moved[0] < 0


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write_noise", [0.0, 1.0])
@pytest.mark.parametrize("algorithm", [TikiTakaV1(), TikiTakaV2(), TikiTakaV4(columns="all")])
def test_the_fast_array_of_a_file_is_the_one_that_was_saved(algorithm, write_noise):
    """Held and visible values, also after a copy of the network."""
    hardware = aimc.PulsedHardware(cell=soft(20).replace(write_noise_std=write_noise), algorithm=algorithm)
    net = aimc.convert(nn.Sequential(nn.Linear(6, 5)), hardware, seed=0)
    net[0].cells.state["held"][0].uniform_(-0.52, 0.52, generator=torch.Generator().manual_seed(0))
    saved = {name: value.clone() for name, value in net.state_dict().items()}
    mean = float(saved["0.cells.held"][0].abs().mean())
    assert 0.2 < mean < 0.3
    fresh = aimc.convert(nn.Sequential(nn.Linear(6, 5)), hardware, seed=1)
    fresh.load_state_dict(saved)
    for other in (fresh, copy.deepcopy(net), copy.deepcopy(fresh)):
        for name, value in saved.items():
            assert torch.equal(other.state_dict()[name], value), name
        assert float(other[0].cells.state["held"][0].abs().mean()) == pytest.approx(mean, abs=1e-7)


# Timing ---------------------------------------------------------------------------------------------------------------


def test_transfers_come_after_every_period_th_mini_batch():
    """Also where the last batch is smaller; of the second version in mini-batches and in vectors."""
    sizes = (4, 4, 2, 4, 4, 2)
    for algorithm, expected in (
        (TikiTakaV1(period=2), [0, 1, 1, 2, 2, 3]),
        (TikiTakaV2(period=2), [0, 1, 1, 2, 2, 3]),
        (TikiTakaV2(unit="vectors", period=5), [0, 1, 2, 2, 3, 4]),  # after 4, 8, 10, 14, 18 and 20 vectors
    ):
        array, found = array_of(), []
        state = algorithm.init(array, torch.zeros(6, 4))
        for n in sizes:
            algorithm.step(array, state, Vectors(torch.ones(n, 4), torch.ones(n, 6)), 0.1)
            found.append(int(state["reads"][0]))
        assert found == expected, algorithm
        assert state["counters"][UPDATES] == 6


def test_columns_are_reset_after_they_were_read():
    """To the rest point; the ones that were not read stay, and what was read has been passed on."""
    cell = PLAIN.replace(rest=-0.2, reset_std=0.0)
    algorithm = TikiTakaV1(**{**RELATIVE, "columns": 2, "reset_chance": 1.0})
    array, states = array_of(cell), {}
    for chance in (0.0, 1.0):
        state = algorithm.init(array, torch.zeros(6, 4))
        state["held"][0] = 0.5
        algorithm.replace(reset_chance=chance).step(
            array, state, Vectors(torch.zeros(2, 4), torch.ones(2, 6)), 0.4
        )
        states[chance] = state
    assert states[0.0]["held"][0].unique().tolist() == [0.5]
    assert_close("read", states[1.0]["held"][0][:, :2], torch.full((6, 2), -0.2))
    assert_close("not read", states[1.0]["held"][0][:, 2:], torch.full((6, 2), 0.5))
    assert float(states[0.0]["held"][1][:, :2].abs().sum()) > 0
    assert_close("passed on", states[1.0]["held"][1], states[0.0]["held"][1])


def test_rows_are_transferred_in_turn():
    """0.4 of a read of 0.5 is two steps, sent for certain as all reads are alike; each device takes its own."""
    algorithm = TikiTakaV1(**{**RELATIVE, "columns": 4}, rows=True)
    signs = torch.ones(6, 4)
    signs[1, 2] = signs[4, 0] = -1.0
    array = array_of(PLAIN.replace(dw_min_dtod=0.3))
    state = algorithm.init(array, torch.zeros(6, 4))
    state["held"][0] = 0.5 * signs
    up, down = state["parameters"][1][..., 0], state["parameters"][1][..., 1]
    steps = torch.where(signs > 0, up, -down)
    expected = torch.zeros(6, 4)
    for visited in ([0, 1, 2, 3], [4, 5, 0, 1]):
        algorithm.step(array, state, Vectors(torch.zeros(2, 4), torch.ones(2, 6)), 0.4)
        expected[visited] += 2 * steps[visited]
        assert_close("weight", state["held"][1], expected, atol=1e-6)
    assert state["counts"][1].sum(1).tolist() == [16, 16, 8, 8, 8, 8] and state["reads"].tolist() == [8, 0]


def test_rows_are_reset_after_they_were_read():
    cell = PLAIN.replace(rest=-0.2, reset_std=0.0)
    algorithm = TikiTakaV1(**{**RELATIVE, "columns": 2, "reset_chance": 1.0}, rows=True)
    array = array_of(cell)
    state = algorithm.init(array, torch.zeros(6, 4))
    state["held"][0] = 0.5
    algorithm.step(array, state, Vectors(torch.zeros(2, 4), torch.ones(2, 6)), 0.4)
    assert_close("read", state["held"][0][:2], torch.full((2, 4), -0.2))
    assert_close("not read", state["held"][0][2:], torch.full((4, 4), 0.5))


def test_rows_give_as_many_pulses_as_columns_on_average():
    cell = soft(200)
    reads = torch.linspace(-0.9, 0.9, 24).view(6, 4)
    means = []
    for rows in (False, True):
        algorithm, array = TikiTakaV1(**{**RELATIVE, "columns": "all"}, rows=rows), array_of(cell)
        state = algorithm.init(array, torch.zeros(6, 4))
        for _ in range(1500):
            state["held"].zero_()
            state["held"][0] = reads
            algorithm.step(array, state, Vectors(torch.zeros(1, 4), torch.ones(1, 6)), 0.003)
        means.append(state["counts"][1].double() / 1500)
    expected = 0.003 * reads.abs().double() / cell.granularity
    for mean in means:  # at most one pulse a transfer
        assert float(((mean - expected) / (expected / 1500).sqrt()).abs().max()) < 4.5


def test_a_reset_comes_as_often_as_its_chance_and_shows_in_its_columns_alone():
    cell = PLAIN.replace(reset_std=0.0, write_noise_std=0.5)
    algorithm = TikiTakaV1(**{**RELATIVE, "columns": 2000, "reset_chance": 0.3})
    array = array_of(cell, (1, 4000))
    state = algorithm.init(array, torch.zeros(1, 4000))
    state["held"][0] = state["w"][0] = 0.5
    algorithm.step(array, state, Vectors(torch.zeros(1, 4000), torch.ones(1, 1)), 0.1)
    reset = state["held"][0, 0] == 0.0
    assert not bool(reset[2000:].any()) and abs(int(reset.sum()) - 600) < 4 * (2000 * 0.3 * 0.7) ** 0.5
    assert torch.equal(state["w"][0, 0] == 0.5, ~reset)  # write noise of those that were reset, anew
    noise = state["w"][0, 0][reset]
    assert float(noise.std()) == pytest.approx(0.5 * cell.dw_min, rel=0.15)


def test_a_buffer_grows_by_rate_times_read_over_the_granularity():
    """By hand: A moves by -0.2 (deterministic), then every column is read."""
    x, d = torch.ones(1, 4), torch.ones(1, 6)
    common = {**RELATIVE, "columns": "all", "pulses": DETERMINISTIC}
    for algorithm, lr, expected in (
        (TikiTakaV2(**common), 0.2, -0.2 * 0.2 / 0.1),
        (TikiTakaV2(threshold=2.0, **common), 0.2, -0.2 * 0.2 / 0.2),
        (TikiTakaV2(**{**common, "scale_transfer_lr": False, "transfer_lr": 0.3}), 0.2, -0.2 * 0.3 / 0.1),
        (TikiTakaV2(**{**common, "fast_lr": 0.2, "scale_fast_lr": False}), 0.1, -0.2 * 0.1 / 0.1),
        (TikiTakaV2(auto_granularity=8.0, **common), 0.2, -0.2 * 0.2 / (0.1 * 8 / 4)),  # one vector a period
        (TikiTakaV2(auto_granularity=8.0, unit="vectors", **common), 0.2, -0.2 * 0.2 / (0.1 * 8 / 4)),
    ):
        array = array_of(PLAIN)
        state = algorithm.init(array, torch.zeros(6, 4))
        algorithm.step(array, state, Vectors(x, d), lr)
        assert_close("fast", state["held"][0], torch.full((6, 4), -0.2), atol=1e-6)
        assert_close("buffer", state["buffer"], torch.full((6, 4), expected), atol=1e-6)


@pytest.mark.parametrize(
    ("fast_lr", "lr", "scaled"), [(0.05, 0.4, False), (0.5, 0.4, True), (0.1, 0.1, False)]
)
@pytest.mark.parametrize("auto", [False, True])
def test_with_corrected_magnitudes_the_buffer_holds_the_step_of_plain_descent(fast_lr, lr, scaled, auto):
    """``lr d x / (scale g)`` pulses, whatever the fast tile's rate; exact where the fast tile moves exactly."""
    algorithm = TikiTakaV2(
        fast_lr=fast_lr, scale_fast_lr=scaled and not auto, columns="all", threshold=1e5,
        correct_gradient_magnitudes=True, auto_scale=auto,
        pulses=PulseTrain(length=1024, kind="deterministic", length_management=False),
    )  # fmt: skip
    if auto:
        algorithm = algorithm.replace(fast_lr=0.25)
    cell = PLAIN.replace(dw_min=1e-4)
    array = array_of(cell, scale=2.0)
    state = algorithm.init(array, torch.zeros(6, 4))
    x, d = torch.tensor([[2.0, 1.0, 2.0, 1.0]]), torch.full((1, 6), 0.2)
    for _ in range(2):  # the second time with means
        before = state["buffer"].clone()
        held = state["held"][0].clone()
        algorithm.step(array, state, Vectors(x, d), lr)
        moved = state["held"][0] - held
        expected = -lr * 0.2 * x.expand(6, 4) / 2.0 / 1e-4 / 1e5
        share = held / torch.where(moved != 0, moved, 1.0)  # what A held before is read, too
        assert_close("buffer", (state["buffer"] - before) / (1 + share), expected, rtol=1e-3)


def test_an_automatic_period_follows_states_and_width():
    """200 states and 4 or 100 columns."""
    cell = soft(200)
    for columns, auto, expected in ((4, 0.1, 5), (4, 0.11, 6), (100, 0.1, 1), (100, 10.0, 20)):
        algorithm, array = TikiTakaV2(auto_period=auto), array_of(cell, (2, columns))
        assert algorithm.period_of(array) == expected
        assert algorithm.schedule(array, 100, 8, 0.1)[0].columns_per_epoch == pytest.approx(100 / expected)
    algorithm, array = TikiTakaV3(auto_period=0.1, auto_granularity=7.0), array_of(cell)
    state, reads = algorithm.init(array, torch.zeros(6, 4)), []
    for _ in range(10):
        algorithm.step(array, state, Vectors(torch.ones(1, 4), torch.ones(1, 6)), 0.1)
        reads.append(int(state["reads"][0]))
    assert reads == [0] * 4 + [1] * 5 + [2]
    size = cell.granularity * 7.0 / (4 * 5)
    assert algorithm.buffer(array, state, 5, 0.1).gain == pytest.approx(0.1 / size)


def test_with_auto_scale_the_average_vector_asks_for_its_share_of_a_train():
    """Whatever the scale of inputs, gradients and rate: kappa = fast_lr * length, here 0.4 * 5 = 2 pulses."""
    for factor, lr in ((1.0, 0.1), (1e-3, 7.0)):
        algorithm = TikiTakaV3(fast_lr=0.4, chop=0.0, pulses=PulseTrain(length=5, kind="deterministic"))
        array = array_of(PLAIN)
        state = algorithm.init(array, torch.zeros(6, 4))
        algorithm.step(array, state, Vectors(torch.ones(1, 4) * factor, torch.ones(1, 6) * factor), lr)
        assert state["counts"][0].unique().tolist() == [2]
        # Vectors of twice the size: the means follow by 1 % a mini-batch.
        double = Vectors(torch.ones(2, 4) * 2 * factor, torch.ones(2, 6) * factor)
        algorithm.step(array, state, double, lr)
        assert state["means"].tolist() == pytest.approx([factor * (2 - 0.995**2), factor], rel=1e-5)


def test_the_reference_follows_the_settings():
    """Flips every ceil(1/chop) sweeps, the mean's weight is tail_weighting per flip, at most 1."""
    array = array_of()
    for chop, tail, beta in ((0.1, 5.0, 0.5), (0.1, 20.0, 1.0), (0.3, 1.0, 0.25), (1.0, 1.0, 0.5)):
        algorithm = TikiTakaV4(chop=chop, tail_weighting=tail)
        state = algorithm.init(array, torch.zeros(6, 4))
        assert algorithm.buffer(array, state, 1, 0.1).beta == beta
    x, d = torch.ones(1, 4), torch.ones(1, 6)
    algorithm = TikiTakaV4(columns="all", chop=0.5, transfer_lr=100.0)
    state, written = algorithm.init(array, torch.zeros(6, 4)), []
    for _ in range(5):
        algorithm.step(array, state, Vectors(x, d), 0.1)
        written.append(int(state["counts"][1].sum()) > 0)
    assert written == [False, False, False, True, True]
