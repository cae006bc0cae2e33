"""Updates by pulses: two bodies equal bit for bit, pulse counts with the mean and spread of their formulas."""

from __future__ import annotations

import itertools
import math
import re
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aimc.cells import ConstantStep, PulsedCell, SoftBounds
from aimc.errors import AimcError
from aimc.ops.pulsed_update import STATISTICS, Patches, PulseTrain, Vectors, padded, pulsed_update
from aimc.random import Key
from tests.helpers import assert_close
from tests.moments import assert_moments
from tests.pulsed_cells import ALIKE, PULSED

KEY = Key(31, step=3)
G = 2.0**-7  # a step whose multiples are exact
IDEAL = ConstantStep(**{**ALIKE, "w_max": 1e4, "w_min": -1e4}, dw_min=G, dw_min_std=0.0)
NOISY = SoftBounds.with_states(
    20, w_max=1.0, w_min=-1.0, dw_min_std=0.5, write_noise_std=0.7, corrupt_probability=0.1
)
STEP = NOISY.granularity
TOP = torch.tensor([1.0, 0.5, 0.2])
SIDE = torch.tensor([1.0, -0.3])


class Result(NamedTuple):
    held: Tensor
    w: Tensor
    counts: Tensor
    statistics: Tensor


def update(
    cell: PulsedCell, vectors: Vectors, lr: float, train: PulseTrain = PulseTrain(), backend: str = "cpu",
    key: Key = KEY, onto: Result | None = None, start: float = 0.1, **options,
) -> Result:  # fmt: skip
    """Pulses on devices that hold ``start``, or on a copy of those of an earlier result."""
    shape = (vectors.rows, vectors.columns)
    p = cell.draw(shape, Key(1))
    if onto is None:
        held = cell.snap(torch.full(shape, start), p)
        onto = Result(held, held, torch.zeros(shape, dtype=torch.int32), torch.zeros(7, dtype=torch.int64))
    held, counts = onto.held.clone(), onto.counts.clone()
    w = onto.w.clone() if cell.write_noise_std > 0 else held
    found = pulsed_update(
        held, w, p, cell, vectors, lr, key, train, counts=counts, backend=backend, **options
    )
    return Result(held, w, counts, onto.statistics + found)


def assert_same(actual: Result, expected: Result):
    for name, a, e in zip(Result._fields, actual, expected, strict=True):
        assert_close(name, a, e, atol=0, rtol=0)


def by_both(*args, **options) -> Result:
    """The result of the compiled body, once the reference has agreed."""
    expected = update(*args, **options, backend="reference")
    assert_same(update(*args, **options), expected)
    return expected


def named(result: Result) -> dict[str, int]:
    return dict(zip(STATISTICS, result.statistics.tolist(), strict=True))


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_gaps(n: int, rows: int, columns: int, seed: int = 0) -> Vectors:
    """Vectors of which the third has no input and the fifth no gradient, with zeros inside the others."""
    x, d = draws(n, columns, seed=seed), draws(n, rows, seed=seed + 1)
    x[:, 1::3], d[:, 2::4] = 0, 0
    x[2::5], d[4::5] = 0, 0
    return Vectors(x, d)


def repeated(n: int, x: Tensor = TOP, d: Tensor = SIDE) -> Vectors:
    return Vectors(x.expand(n, -1).contiguous(), d.expand(n, -1).contiguous())


def convolution(
    images: int, groups: int, channels: int, rows: int, size: tuple[int, ...], kernel: tuple[int, ...],
    stride: int = 1, dilation: int = 1, padding: int = 0, seed: int = 0, with_one: bool = False,
) -> Vectors:  # fmt: skip
    """Vectors of a convolution; ``channels`` and ``rows`` per group."""
    dims = len(size)
    x = padded(draws(images, groups * channels, *size, seed=seed), [padding] * 2 * dims)
    patches = Patches.of(tuple(x.shape[2:]), channels, kernel, (stride,) * dims, (dilation,) * dims, with_one)
    if with_one:
        x = torch.cat(
            [0.1 * x, torch.ones(images, 1, *x.shape[2:])], 1
        )  # the 1 is the largest input of a patch
    d = draws(images, groups * rows, len(patches.starts), seed=seed + 1)
    d[:, :, ::3] = 0
    return Vectors(x, d, groups, patches)


LAYERS = {
    "one row": lambda: with_gaps(6, 1, 9),
    "one column": lambda: with_gaps(6, 19, 1),
    "one device": lambda: Vectors(draws(3, 1), draws(3, 1, seed=1)),
    "more than a block of lines": lambda: with_gaps(3, 17, 35),
    "no vectors": lambda: with_gaps(0, 3, 4),
    "conv1d": lambda: convolution(2, 1, 2, 3, (9,), (3,), stride=2, dilation=2),
    "conv1d groups": lambda: convolution(1, 2, 3, 2, (5,), (2,), padding=1),
    "conv2d": lambda: convolution(2, 1, 3, 2, (4, 3), (3, 2), stride=2, padding=1),
    "conv2d depthwise": lambda: convolution(1, 3, 1, 1, (4, 4), (2, 3), dilation=1),
    "conv2d no images": lambda: convolution(0, 1, 2, 2, (4, 4), (2, 2)),
    "conv1d with ones": lambda: convolution(2, 1, 1, 3, (9,), (1,), with_one=True),
    "conv2d with ones": lambda: convolution(2, 1, 3, 2, (5, 4), (3, 2), stride=2, padding=1, with_one=True),
    "conv3d": lambda: convolution(1, 1, 2, 2, (3, 4, 3), (2, 1, 2), stride=2),
    "conv3d groups": lambda: convolution(1, 2, 1, 2, (3, 3, 2), (2, 2, 2), padding=0),
}
KINDS = ["stochastic", "mean_count", "deterministic"]


# The bodies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PULSED)
def test_bodies_agree_for_every_cell(name):
    cell, vectors = PULSED[name], with_gaps(4, 3, 5)
    lr, train = 3 * cell.granularity, PulseTrain(length=3)
    spread = cell.replace(corrupt_probability=0.2, write_noise_std=0.7)
    found = by_both(spread, vectors, lr, train)
    assert not torch.equal(found.held, found.w)
    alike = {n: 0.0 for n in cell.field_names() if n.endswith("_dtod") or n == "reference_std"}
    found = by_both(cell.replace(**alike, corrupt_probability=0.0, write_noise_std=0.0), vectors, lr, train)
    assert named(found)["pulses"] > 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", LAYERS)
def test_bodies_agree_for_every_layer(layer, kind):
    vectors = LAYERS[layer]()
    found = by_both(NOISY, vectors, 2 * STEP, PulseTrain(kind=kind, length=3), first=5)
    assert named(found)["vectors"] == vectors.count * vectors.groups
    assert (named(found)["pulses"] > 0) == (vectors.count > 0)
    assert named(found)["pulses"] == int(found.counts.sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("managements", [(True, True), (False, True), (False, False)], ids=str)
def test_bodies_agree_for_every_train(managements, kind):
    """Almost no pulses, some, and more than a train holds; with trains of one slot too."""
    length_management, management = managements
    vectors = with_gaps(5, 5, 4)
    for fixed, resolution, (length, scale), share in itertools.product(
        (True, False), (0.0, 0.15), ((1, 1.0), (3, 2.0)), (1e-5, 0.7, 3.5)
    ):
        train = PulseTrain(
            kind=kind, length=length, length_management=length_management, management=management,
            fixed_length=fixed or length_management, gradient_scale=scale if management else 1.0,
            x_resolution=resolution, d_resolution=resolution / 2,
        )  # fmt: skip
        found = named(by_both(NOISY, vectors, share * STEP, train))
        assert found["active"] == 3
        if share == 3.5:
            assert found["beyond_budget"] > 0 and found["pulses"] > 0
        if share == 1e-5 and management and kind != "stochastic":
            assert found["pulses"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_bodies_agree_with_choppers(kind):
    vectors = convolution(1, 2, 2, 2, (4,), (2,))
    signs = {"x_sign": draws(4).sign(), "d_sign": draws(4, seed=1).sign()}
    train = PulseTrain(kind=kind, length=5)
    found = by_both(IDEAL, vectors, 2 * G, train, start=0.0, **signs)
    plain = update(IDEAL, vectors, 2 * G, train, start=0.0)
    assert_close("flipped", found.held, plain.held * signs["d_sign"][:, None] * signs["x_sign"])
    assert bool((plain.held != 0).any()) and bool((found.held != plain.held).any())


def test_no_write_noise_no_counts_and_another_granularity():
    cell = NOISY.replace(write_noise_std=0.0, corrupt_probability=0.0)
    vectors = with_gaps(5, 3, 4)
    counted = by_both(cell, vectors, 3 * STEP, granularity=2 * STEP)
    held = cell.snap(torch.full((3, 4), 0.1), cell.draw((3, 4), Key(1)))
    pulsed_update(held, held, cell.draw((3, 4), Key(1)), cell, vectors, 3 * STEP, KEY, granularity=2 * STEP)
    assert torch.equal(held, counted.held)
    assert named(counted)["slots"] < named(update(cell, vectors, 3 * STEP))["slots"]


# The law of the counts --------------------------------------------------------------------------------------------


def pairs(x: Tensor, d: Tensor, lr: float, slots: int) -> tuple[Tensor, Tensor]:
    """Probabilities of rows and columns in balanced trains within budget."""
    kappa = lr * float(x.abs().max() * d.abs().max()) / G
    top = (kappa / slots) ** 0.5
    return d.abs().double() / float(d.abs().max()) * top, x.abs().double() / float(x.abs().max()) * top


@pytest.mark.parametrize("length_management", [True, False])
@pytest.mark.parametrize("kappa", [0.06, 0.6])
def test_mean_count(kappa, length_management):
    """``lr |x_j d_i| / g`` pulses, against the gradient."""
    slots = 1 if length_management else 31
    n = 2_000_000 if length_management else 150_000
    found = update(IDEAL, repeated(n), kappa * G, PulseTrain(length_management=length_management), start=0.0)
    mean = kappa * SIDE.abs().double()[:, None] * TOP.double()
    p, q = pairs(TOP, SIDE, kappa * G, slots)
    both = p[:, None] * q
    error = (slots * both * (1 - both) / n).sqrt()
    assert_close(
        "share of 5 errors", (found.counts / n - mean) / (5 * error), torch.zeros_like(mean), atol=1.0
    )
    if length_management:
        assert_close("mean count", found.counts[0, 0].double() / n, mean[0, 0], rtol=0.015)
    assert_close("against the gradient", found.held, -G * found.counts * (SIDE.sign()[:, None] * TOP.sign()))
    assert named(found) == {
        "vectors": n, "active": n, "pulses": int(found.counts.sum()), "slots": slots * n, "beyond_budget": 0,
        "probabilities": 2 * n, "clipped": 0,
    }  # fmt: skip


def test_mean_count_to_a_percent():
    n = 5_000_000
    found = update(IDEAL, repeated(n, TOP[:1], SIDE[:1]), 0.06 * G)
    assert_close("mean count", found.counts / n, torch.tensor([[0.06]]), rtol=0.01)


@pytest.mark.parametrize(
    "kappa, train, slots",
    [
        (0.3, PulseTrain(), 1),
        (4.3, PulseTrain(), 5),
        (0.6, PulseTrain(length=7, length_management=False), 7),
    ],
    ids=str,
)
def test_spread_of_the_counts(kappa, train, slots):
    """A binomial of the slots in each cell; cells of a row share the row's bits, those of a column the column's."""
    n, x, d = 10_000, torch.tensor([1.0, 0.8, 0.6]), torch.tensor([0.02, -0.014])
    lr = kappa * G / 0.02
    held, counts = torch.zeros(2, 3), torch.zeros(n, 2, 3, dtype=torch.int32)
    parameters, vectors = IDEAL.draw((2, 3), Key(1)), Vectors(x[None], d[None])
    for k in range(n):
        key = Key(5, step=k)
        pulsed_update(held, held, parameters, IDEAL, vectors, lr, key, train, counts=counts[k])
    p, q = pairs(x, d, lr, slots)
    both = p[:, None] * q
    off = counts.double() - slots * both
    for i, j in itertools.product(range(2), range(3)):
        assert_moments(f"mean {i} {j}", off[:, i, j], mean=0.0)
        variance = float(slots * both[i, j] * (1 - both[i, j]))
        assert_moments(f"variance {i} {j}", off[:, i, j].square(), mean=variance)
        for k, m in itertools.product(range(2), range(3)):
            if (k, m) == (i, j):
                continue
            shared = 0.0
            if k == i:
                shared = slots * q[j] * q[m] * p[i] * (1 - p[i])
            elif m == j:
                shared = slots * p[i] * p[k] * q[j] * (1 - q[j])
            assert_moments(f"covariance {i} {j} {k} {m}", off[:, i, j] * off[:, k, m], mean=float(shared))


def test_beyond_the_budget_only_the_rows_that_saturate_lose_pulses():
    n, length, kappa = 4000, 5, 20.0
    x, d = torch.tensor([1.0, -0.4]), torch.tensor([1.0, -0.2, 0.1])
    found = update(IDEAL, repeated(n, x, d), kappa * G, PulseTrain(length=length), start=0.0)
    assert found.counts[0, 0] == length * n  # both are certain in every slot
    expected = kappa * d.abs().double()[:, None] * x.abs().double()
    expected[0] *= length / kappa
    p, q = expected[:, 0] / length, x.abs().double()
    both = p[:, None] * q
    error = (length * both * (1 - both) / n).sqrt().clamp_min(1e-12)
    assert_close(
        "5 errors", (found.counts / n - expected) / (5 * error), torch.zeros_like(expected), atol=1.0
    )
    assert_close("direction", found.held, -G * found.counts * d.sign()[:, None] * x.sign())
    assert named(found)["beyond_budget"] == n and named(found)["clipped"] == n
    assert named(found)["slots"] == length * n


@pytest.mark.parametrize(
    "train, lr, slots, factor",
    [
        (PulseTrain(length=1), 0.5, 1, None),
        (PulseTrain(length_management=False, management=False), 10.0, 31, (10 / 31) ** 0.5),
        (PulseTrain(length=3, length_management=False, management=False), 6.0, 3, 2**0.5),
        (PulseTrain(length=3, length_management=False, management=False, fixed_length=False), 6.5, 7, 1.0),
        (PulseTrain(length=9, length_management=False, management=False, fixed_length=False), 6.5, 9, (6.5 / 9) ** 0.5),
        (PulseTrain(length=3, length_management=False, fixed_length=False), 6.5, 7, 1.0),
    ],
    ids=str,
)  # fmt: skip
def test_slots_and_probabilities_of_other_trains(train, lr, slots, factor):
    """Without the managements both sides are scaled alike, and each is clipped at 1 for itself."""
    n, x, d = 40_000, torch.tensor([1.0, 0.4, 0.0]), torch.tensor([0.9, -0.2])
    found = update(IDEAL, repeated(n, x, d), lr * G, train, start=0.0)
    if factor is None:
        p, q = pairs(x, d, lr * G, slots)
    else:
        p, q = ((v.abs().double() * factor).clamp(max=1) for v in (d, x))
        assert named(found)["clipped"] == n * int((d.abs() * factor > 1).sum())
    both = p[:, None] * q
    error = (slots * both * (1 - both) / n).sqrt().clamp_min(1e-12)
    assert_close(
        "5 errors",
        (found.counts / n / slots - both) * slots / (5 * error),
        torch.zeros(2, 3).double(),
        atol=1.0,
    )
    assert named(found)["slots"] == slots * n


def test_a_larger_gradient_scale_lengthens_trains_and_moves_no_mean():
    n = 60_000
    found = update(IDEAL, repeated(n), 1.5 * G, PulseTrain(gradient_scale=4.0))
    assert named(found)["slots"] == 6 * n  # ceil(4 * 1.5)
    mean = 1.5 * SIDE.abs().double()[:, None] * TOP.double()
    assert_close("mean", found.counts.double() / n, mean, atol=5 * (1.5 / n) ** 0.5)


def test_rounded_counts():
    """Row 0 is at 1 in every slot, so the formulas can be written out."""
    x, d = torch.tensor([1.0, 0.8, 0.3]), torch.tensor([-1.0, 0.69])
    train = PulseTrain(length=5, kind="mean_count")
    sides = torch.tensor([5.0, 3.0])[:, None], torch.tensor([5.0, 4.0, 2.0])  # 3.45 and 1.5 rounded
    found = update(IDEAL, Vectors(x[None], d[None]), 5 * G, train)
    assert_close("mean count", found.counts, torch.round(sides[0] * sides[1] / 5).int())
    found = update(IDEAL, Vectors(x[None], d[None]), 5 * G, train.replace(kind="deterministic"))
    assert_close("deterministic", found.counts, torch.round(5 * d.abs()[:, None] * x.abs()).int())
    coarse = train.replace(kind="deterministic", x_resolution=0.4, d_resolution=0.3)
    found = update(IDEAL, Vectors(x[None], d[None]), 5 * G, coarse)
    grids = torch.tensor([0.9, 0.6])[:, None], torch.tensor([0.8, 0.8, 0.4])
    assert_close("on grids", found.counts, torch.round(5 * grids[0] * grids[1]).int())


def test_a_probability_is_exact_to_its_last_bits():
    """Just above 1/256 the high byte decides for 255 numbers of 256 and the low bits for the rest."""
    n, p = 3_000_000, 1.5 / 256
    train = PulseTrain(length=1, length_management=False, management=False)
    found = update(IDEAL, repeated(n, torch.ones(1), torch.tensor([p])), G, train)
    assert abs(int(found.counts) / n - p) < 5 * (p / n) ** 0.5


# Draws belong to positions ----------------------------------------------------------------------------------------


def test_vectors_without_input_or_gradient_can_be_left_out():
    vectors = with_gaps(10, 3, 5)
    whole = by_both(NOISY, vectors, STEP)
    part = None
    for v in range(10):
        x, d = vectors.x[v : v + 1], vectors.d[v : v + 1]
        if bool(x.any()) and bool(d.any()):
            part = update(NOISY, Vectors(x, d), STEP, onto=part, first=v)
    assert part is not None and named(part)["vectors"] == 6
    assert_same(part._replace(statistics=whole.statistics), whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "layer", ["more than a block of lines", "conv2d", "conv2d depthwise", "conv1d groups"]
)
def test_a_batch_in_parts_is_the_batch(layer, kind):
    vectors = LAYERS[layer]()
    vectors = Vectors(
        torch.cat([vectors.x, vectors.x * 0.7, vectors.x]), torch.cat([vectors.d, vectors.d, -vectors.d]),
        vectors.groups, vectors.patches,
    )  # fmt: skip
    per_image = vectors.count // len(vectors.x)
    train = PulseTrain(kind=kind)
    whole, parts = update(NOISY, vectors, 2 * STEP, train), None
    for a, b in itertools.pairwise([0, 1, 2, len(vectors.x)]):
        part = Vectors(vectors.x[a:b], vectors.d[a:b], vectors.groups, vectors.patches)
        parts = update(NOISY, part, 2 * STEP, train, onto=parts, first=a * per_image)
    assert parts is not None
    assert_same(parts, whole)
    assert named(whole)["pulses"] > 0


def test_a_slot_of_more_pulses_than_wait_together():
    """The compiled body sends some rows at a time then; 67 columns, so that parts begin within a block of normals."""
    vectors = repeated(2, torch.ones(67), torch.full((71,), -1.0))
    found = by_both(NOISY, vectors, 2 * STEP, PulseTrain(length=2))
    assert named(found)["pulses"] == 2 * 2 * 67 * 71


def test_lines_do_not_see_what_others_fire():
    """Zeros in some lines, their largest kept, change nothing for the devices of the others but the noise."""
    x, d = draws(5, 20), draws(5, 18, seed=1)
    x[:, 0], d[:, 0] = 5.0, 5.0
    quiet = NOISY.replace(dw_min_std=0.0, write_noise_std=0.0)
    whole = by_both(quiet, Vectors(x, d), STEP / 4)
    x[:, 7:12], d[:, 3:9] = 0, 0
    thin = by_both(quiet, Vectors(x, d), STEP / 4)
    keep = torch.ones(18, 20, dtype=torch.bool)
    keep[:, 7:12] = keep[3:9] = False
    for a, e in zip(thin[:3], whole[:3], strict=True):
        assert torch.equal(a[keep], e[keep])
    assert int(whole.counts[keep].sum()) > 0 and not bool(thin.counts[~keep].any())


@pytest.mark.parametrize("layer", ["conv1d", "conv2d", "conv3d", "conv1d with ones", "conv2d with ones"])
def test_a_convolution_is_the_linear_layer_of_its_patches(layer):
    vectors = LAYERS[layer]()
    x, d = vectors.unfolded()
    linear = Vectors(x[0].contiguous(), d[0].contiguous())
    assert_same(update(NOISY, vectors, STEP), update(NOISY, linear, STEP))
    assert_close("gradient", vectors.gradient(), linear.gradient(), atol=1e-5)
    if "ones" in layer:
        assert bool((linear.x[:, -1] == 1).all()) and not bool((linear.x[:, :-1] == 1).any())


@pytest.mark.parametrize("layer", ["conv1d", "conv2d", "conv3d groups"])
def test_gradients_may_lie_channels_last(layer):
    vectors = LAYERS[layer]()
    d = vectors.d.transpose(1, 2).contiguous().transpose(1, 2)
    assert not d.is_contiguous()
    last = Vectors(vectors.x, d, vectors.groups, vectors.patches)
    assert_same(by_both(NOISY, last, STEP), update(NOISY, vectors, STEP))
    assert_close("dense gradient", last.gradient(), vectors.gradient(), atol=1e-5)


def test_key_step_and_number_of_the_vector_are_what_a_draw_depends_on():
    vectors = repeated(1, torch.ones(40), torch.ones(3))

    def pulses(key=KEY, first=0):
        return update(IDEAL, vectors, G / 2, key=key, first=first).counts

    assert torch.equal(pulses(), pulses())
    others = [pulses(KEY.at(step=4)), pulses(Key(32, step=3)), pulses(first=1), pulses(first=1 << 30)]
    for a, b in itertools.combinations([pulses(), *others], 2):
        assert not torch.equal(a, b)


def test_threads_change_nothing():
    vectors = with_gaps(200, 30, 40)
    expected = update(NOISY, vectors, STEP)
    found: dict[int, Result] = {}

    def work(k):
        found[k] = update(NOISY, vectors, STEP)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        torch.set_num_threads(before)
    for k in range(4):
        assert_same(found[k], expected)


# Scenarios --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("order", [(1, 256, 1, 7, 1000), (1000, 7, 256, 1)], ids=str)
def test_the_mean_change_follows_the_batch_size_in_any_order(order, backend):
    if backend == "reference":
        order = tuple(min(batch, 25) for batch in order)  # slow
    kappa, now = 0.6, None
    p, q = (float(v) for v in pairs(torch.ones(1), torch.ones(1), kappa * G, 1))
    spread = (
        8 * p * q * (1 - p * q) + 56 * p * (1 - p) * q**2
    ) ** 0.5 / 8  # of the mean count of 8 cells of a row
    for k, batch in enumerate(order):
        vectors = repeated(batch, torch.ones(8), torch.ones(1))
        before = now.held if now is not None else torch.zeros(1, 8)
        alone = update(IDEAL, vectors, kappa * G, backend=backend, key=Key(7, step=k), start=0.0)
        now = update(IDEAL, vectors, kappa * G, backend=backend, key=Key(7, step=k), onto=now, start=0.0)
        assert torch.equal(now.held - before, alone.held)
        off = float(alone.counts.double().mean()) - batch * kappa
        assert abs(off) < 5 * spread * batch**0.5, (batch, off)


def test_a_large_convolution_update():
    """100 352 patches: finite; with the mean of the gradient, in one update and in ten."""
    x, d = draws(128, 1, 32, 32), draws(128, 3, 28 * 28, seed=1) / 128
    patches = Patches.of((32, 32), 1, (5, 5), (1, 1), (1, 1))
    whole = Vectors(x, d, 1, patches)
    assert whole.count == 100_352
    lr = 5 * G
    mean = -lr * whole.gradient()
    size = Vectors(x.abs(), d.abs(), 1, patches).gradient()
    error = (G * lr * size).sqrt()  # of a sum of sparse pulses
    changes = [update(IDEAL, whole, lr, start=0.0).held]
    now = None
    for k in range(10):
        a, b = 128 * k // 10, 128 * (k + 1) // 10
        now = update(IDEAL, Vectors(x[a:b], d[a:b], 1, patches), lr, key=Key(8, step=k), onto=now, start=0.0)
    assert now is not None
    changes.append(now.held)
    for change in changes:
        assert bool(change.isfinite().all())
        assert_close("5 errors", (change - mean) / (5 * error), torch.zeros_like(mean), atol=1.0)
    assert_close("alike", (changes[0] - changes[1]) / (5 * 2**0.5 * error), torch.zeros_like(mean), atol=1.0)


def test_nothing_is_unfolded():
    """The patches would take 126 MB: eight channels, 25 positions of the filter, 157 600 vectors."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")

    def peak() -> int:
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0])

    x, d = draws(200, 8, 32, 32), draws(200, 2, 28 * 28, seed=1) / 200
    vectors = Vectors(x, d, 1, Patches.of((32, 32), 8, (5, 5), (1, 1), (1, 1)))
    update(IDEAL, Vectors(x[:1], d[:1], 1, vectors.patches), G)  # compiled and loaded
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    found = update(IDEAL, vectors, G)
    assert peak() - before < 8000
    assert named(found)["active"] == 200 * 28 * 28 and named(found)["pulses"] > 0


# Exact updates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_exact_updates_follow_the_dense_gradient(layer):
    vectors = LAYERS[layer]()
    x, d = (v.double() for v in vectors.unfolded())
    gradient = (d.transpose(1, 2) @ x).reshape(vectors.rows, vectors.columns)
    cell = NOISY.replace(write_noise_std=0.0)
    p = cell.draw((vectors.rows, vectors.columns), Key(1))
    signs = {"x_sign": draws(vectors.columns).sign(), "d_sign": draws(vectors.rows, seed=1).sign()}
    flipped = gradient * signs["d_sign"][:, None] * signs["x_sign"]
    for expected, options in ((gradient, {}), (flipped, signs)):
        start = update(cell, vectors, 0.3, PulseTrain(kind="none"), start=0.1, **options)
        free = cell.snap(torch.full(gradient.shape, 0.1), p) - 0.3 * expected
        assert_close("exact", start.held, free.float(), atol=2e-6, rtol=1e-6)
        bounded = update(cell, vectors, 0.3, PulseTrain(kind="none_bounded"), start=0.1, **options)
        clipped = torch.minimum(torch.maximum(free, p[..., 3]), p[..., 2])
        assert_close("within bounds", bounded.held, clipped.float(), atol=2e-6, rtol=1e-6)
        assert not bool(start.statistics.any()) and not bool(start.counts.any())


def test_exact_updates_of_devices_that_are_alike_and_of_what_is_read():
    cell = IDEAL.replace(w_max=0.25, w_min=-0.5, write_noise_std=1.0)
    for kind, ends in (("none", [1.1, -0.9]), ("none_bounded", [0.25, -0.5])):
        d = torch.tensor([[-1.0, 1.0]]).repeat(1, 500)
        found = update(cell, Vectors(torch.ones(1, 1), d), 1.0, PulseTrain(kind=kind))
        assert_close("held", found.held, torch.tensor(ends).repeat(500)[:, None], atol=1e-6)
        noise = (found.w - found.held) / cell.dw_min  # every device is touched
        assert abs(float(noise.std()) - 1) < 5 / math.sqrt(2000)


@pytest.mark.parametrize("layer", ["conv1d groups", "conv2d", "conv3d", "conv2d depthwise"])
def test_patches_are_those_of_torch(layer):
    vectors = LAYERS[layer]()
    p, dims = vectors.patches, vectors.x.dim() - 2
    assert p is not None
    weight = torch.zeros(vectors.rows, vectors.x.shape[1] // vectors.groups, *p.kernel, requires_grad=True)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    y = convolve(vectors.x, weight, None, p.stride, 0, p.dilation, vectors.groups)
    y.backward(vectors.d.view_as(y))
    x, d = vectors.unfolded()
    sum_ = (d.transpose(1, 2) @ x).reshape(vectors.rows, -1)
    assert weight.grad is not None
    assert_close("gradient", sum_, weight.grad.view(vectors.rows, -1), atol=1e-5)


# Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("what", ["input", "gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bad_numbers_are_named(what, bad, dtype):
    x, d = torch.zeros(40, 7, dtype=dtype), torch.zeros(40, 5, dtype=dtype)
    (x if what == "input" else d)[39, 4] = bad
    for kind in ("stochastic", "none"):
        with pytest.raises(AimcError, match=f"the {what} holds NaN or infinite values"):
            update(IDEAL, Vectors(x, d), G, PulseTrain(kind=kind), backend="auto")


def test_the_largest_numbers_are_not_infinite():
    largest = torch.finfo(torch.float32).max
    vectors = Vectors(torch.full((2, 3), largest), torch.full((2, 2), -largest))
    assert named(update(IDEAL, vectors, G, PulseTrain(length=3)))["pulses"] == 2 * 3 * 6
    by_both(IDEAL, Vectors(torch.full((1, 3), 1e-45), torch.full((1, 2), 1e-45)), G)


@pytest.mark.parametrize("lr", [0.0, -0.1, float("inf"), float("nan")])
def test_a_learning_rate_is_positive_and_finite(lr):
    with pytest.raises(AimcError, match="field 'lr': must be positive and finite"):
        update(IDEAL, with_gaps(3, 2, 2), lr)


def test_endless_trains_are_refused():
    train = PulseTrain(length_management=False, fixed_length=False)
    with pytest.raises(AimcError, match="field 'lr': asks for trains of 1e.07 slots, at most 65536"):
        update(IDEAL, with_gaps(3, 2, 2), 1e7 * G, train)
    update(IDEAL, with_gaps(3, 2, 2), 1e7 * G, PulseTrain())


def test_shapes_that_do_not_fit_are_errors():
    """Each of these would be read out of bounds by the compiled body."""
    cell, held = NOISY.replace(write_noise_std=0.0), torch.zeros(2, 3)
    p, vectors = cell.draw((2, 3), Key(1)), with_gaps(4, 2, 3)

    def fails(match, held=held, w=None, p=p, vectors=vectors, **options):
        with pytest.raises(AimcError, match=match):
            pulsed_update(held, held if w is None else w, p, cell, vectors, G, KEY, **options)
        assert not bool(held.any())

    fails("2 rows and 3 columns do not fit cells", held=torch.zeros(3, 2), p=cell.draw((3, 2), Key(1)))
    fails("field 'w'", w=torch.zeros(2, 2))
    fails("field 'parameters'", p=cell.draw((1, 3), Key(1)))
    fails("field 'parameters'", p=p[..., :4])
    fails("field 'counts'", counts=torch.zeros(1, 3, dtype=torch.int32))
    fails("field 'statistics'", statistics=torch.zeros(len(STATISTICS) - 1, dtype=torch.int64))
    fails("field 'statistics'", statistics=torch.zeros(len(STATISTICS)))
    ones = torch.ones(3)
    fails("field 'x_sign, d_sign'", x_sign=ones)
    fails("field 'x_sign, d_sign'", d_sign=ones[:2])
    fails("field 'x_sign, d_sign'", x_sign=ones[:2], d_sign=ones[:2])
    fails("field 'x_sign, d_sign'", x_sign=ones, d_sign=ones)
    fails("field 'backend'.*float64", vectors=Vectors(vectors.x.double(), vectors.d), backend="cpu")


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_counters_are_added_to(backend):
    cell = NOISY.replace(write_noise_std=0.0)
    p, vectors = cell.draw((2, 3), Key(1)), with_gaps(4, 2, 3)

    def counted(**options) -> Tensor:
        held = torch.zeros(2, 3)
        return pulsed_update(held, held, p, cell, vectors, 5 * G, KEY, backend=backend, **options)

    so_far = torch.arange(len(STATISTICS))
    assert counted(statistics=so_far) is so_far
    assert torch.equal(so_far, counted() + torch.arange(len(STATISTICS))) and int(counted()[2]) > 0


def test_vectors_that_do_not_fit_each_other_are_errors():
    x, d = torch.zeros(4, 2, 5), torch.zeros(4, 6, 4)
    patches = Patches.of((5,), 1, (2,), (1,), (1,))
    Vectors(x, d, 2, patches)
    for match, make in (
        ("3 inputs and 4 gradients", lambda: Vectors(torch.zeros(3, 2), torch.zeros(4, 2))),
        ("those of a linear layer", lambda: Vectors(torch.zeros(4, 2, 1), torch.zeros(4, 2))),
        ("those of a linear layer", lambda: Vectors(torch.zeros(4, 2), torch.zeros(4, 2), 2)),
        ("not those of 1 groups", lambda: Vectors(x, d, 1, patches)),
        ("not those of 2 groups", lambda: Vectors(x[:, :, :4].contiguous(), d, 2, patches)),
        ("not those of 2 groups", lambda: Vectors(x, d[:, :, 0], 2, patches)),
        ("3 inputs and 4 gradients", lambda: Vectors(x[:3], d, 2, patches)),
        ("4 output positions and 3 gradients", lambda: Vectors(x, d[:, :, :3], 2, patches)),
        ("5 rows do not divide into 2 groups", lambda: Vectors(x, d[:, :5], 2, patches)),
        ("contiguous", lambda: Vectors(torch.zeros(2, 4).t(), torch.zeros(4, 2))),
        ("contiguous", lambda: Vectors(torch.zeros(4, 2), torch.zeros(2, 4).t())),
    ):
        with pytest.raises(AimcError, match=match):
            make()


def test_trains_that_make_no_sense_are_errors():
    for field, changes in (
        ("length", {"length": 0}),
        ("length", {"length": 5000}),
        ("gradient_scale", {"gradient_scale": 0.0}),
        ("x_resolution", {"x_resolution": -0.1}),
        ("d_resolution", {"d_resolution": 1.0}),
        ("management", {"management": False}),
    ):
        with pytest.raises(AimcError, match=f"field '{field}'"):
            PulseTrain(**changes)
