"""Transfers between arrays: both bodies bit for bit, and each operation against its law."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from aimc.cells import ConstantStep, PulsedCell, SoftBounds
from aimc.errors import AimcError
from aimc.ops.pulsed_update import Patches, PulseTrain, Vectors
from aimc.ops.transfer import Buffer, Read, Tile, buffered_update, reencode, transfer, whole_steps
from aimc.random import Key
from tests.helpers import assert_close
from tests.pulsed_cells import ALIKE, PULSED, RANGE

CELLS: dict[str, PulsedCell] = {
    "soft": PULSED["soft"],
    "write noise": SoftBounds.with_states(4, **RANGE, write_noise_std=1.0),
    "alike": SoftBounds.with_states(10, **ALIKE),
    "stuck": SoftBounds.with_states(10, **RANGE, corrupt_probability=0.3),
    **{name: PULSED[name] for name in ("ladder", "exp_noise", "piecewise")},
}
PLAIN = ConstantStep(dw_min=0.1, dw_min_std=0.0, **ALIKE)
"""Every step is 0.1, up and down, between -1 and 1."""
NOISY = Read(noise=0.06, half=255, bound=12.0)


class Cells:
    """Tiles of cells with random contents, all alike in every copy."""

    def __init__(self, cell: PulsedCell, tiles: int = 1, shape=(7, 5), spread: float = 0.4):
        values = (torch.rand(tiles, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1) * spread
        drawn = [cell.draw(shape, Key(t)) for t in range(tiles)]
        self.cell, self.parameters = cell, torch.stack(drawn)
        self.held = torch.stack([cell.snap(v, p) for v, p in zip(values, drawn)])
        self.w = self.held.clone() if cell.write_noise_std > 0 else self.held
        self.counts = torch.zeros(tiles, *shape, dtype=torch.int32)

    def tile(self, t: int = 0) -> Tile:
        return Tile(self.cell, self.held[t], self.w[t], self.parameters[t], self.counts[t])

    @property
    def contents(self) -> list[Tensor]:
        return [self.held, self.w, self.counts]


def normals(*shape, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_bodies_agree(run) -> list[Tensor]:
    """``run(backend)`` returns tensors, equal bit for bit and not all of them untouched."""
    expected, actual = run("reference"), run("cpu")
    for k, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(a, e), f"tensor {k}"
    return expected


def assert_mean(name: str, samples: Tensor, expected: float, least: float = 0.0) -> None:
    """The mean of independent samples is the expected one within 4 standard errors (and ``least``)."""
    samples = samples.double().flatten()
    error = 4 * float(samples.std()) / len(samples) ** 0.5 + least
    assert abs(float(samples.mean()) - expected) <= error, (name, float(samples.mean()), expected, error)


# Bodies ---------------------------------------------------------------------------------------------------------------

TRAINS = {
    "usual": PulseTrain(),
    "short": PulseTrain(length=2),
    "unmanaged": PulseTrain(length=5, length_management=False, management=False),
    "long": PulseTrain(length=2, length_management=False, management=False, fixed_length=False),
    "rounded": PulseTrain(length=5, x_resolution=0.1, d_resolution=0.05, gradient_scale=0.8),
}


@pytest.mark.parametrize(
    ("cell", "how", "train"),
    [(cell, NOISY, "usual") for cell in CELLS] + [("soft", Read(), train) for train in TRAINS],
)
def test_direct_transfers_agree(cell, how, train):
    source = normals(7, 5)
    source[:, 4] = 0

    def run(backend):
        cells = Cells(CELLS[cell])
        found = [
            transfer(cells.tile(), source, 3, 4, 17, lr, Key(5), how, TRAINS[train], backend)
            for lr in (0.1, 0.6)
        ]
        return [*cells.contents, *found]

    *_, counts, _, found = assert_bodies_agree(run)
    assert counts.sum() > 0 and found[0] == 4


@pytest.mark.parametrize("shape", [(1, 5), (7, 1), (1, 1)], ids=str)
def test_transfers_agree_in_arrays_of_one_row_or_column(shape):
    """Whose devices differ all the same."""
    source = normals(*shape)

    def run(backend):
        cells = Cells(CELLS["soft"], shape=shape, spread=0.1)
        found = transfer(cells.tile(), source, 0, shape[1], 17, 0.6, Key(5), NOISY, TRAINS["usual"], backend)
        return [*cells.contents, found]

    assert assert_bodies_agree(run)[-2].sum() > 0


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_whole_steps_agree(cell):
    def run(backend):
        cells, chi = Cells(cell), normals(7, 5)
        found = [whole_steps(cells.tile(), chi, 0.3, n, Key(5), most=2, backend=backend) for n in (0, 1)]
        return [*cells.contents, chi, *found]

    assert assert_bodies_agree(run)[-1][2] > 0


STOCHASTIC = {"stochastic": True, "tries": 3, "last_tries": 2}
NEAREST = {"stochastic": False, "tries": 1, "last_tries": 3, "floor": 0.0, "threshold": 0.5}


@pytest.mark.parametrize(
    ("cell", "how", "gradient", "options"),
    [(cell, NOISY, True, STOCHASTIC) for cell in CELLS]
    + [(cell, Read(), False, NEAREST) for cell in CELLS]
    + [("soft", Read(), True, options) for options in (STOCHASTIC, NEAREST)]
    + [("soft", Read(half=7, bound=0.3), gradient, STOCHASTIC) for gradient in (False, True)]
    + [("soft", NOISY, gradient, {**STOCHASTIC, "decay": 0.1}) for gradient in (False, True)],
)
def test_reencoding_agrees(cell, how, gradient, options):
    cell = CELLS[cell]
    shares = torch.tensor([0.6**3, 0.36, 0.6, 1.0])

    def run(backend):
        cells, found = Cells(cell, 4), []
        for n in range(3):  # columns 4, 0, 1; then 2, 3, 4; then 0, 1, 2
            g = normals(7, 3, seed=n) if gradient else None
            found += reencode(
                cell, *cells.contents[:2], cells.parameters, cells.counts, shares, (4 + 3 * n) % 5, 3, 11 + 3 * n,
                Key(3), gradient=g, rate=0.3, how=how, backend=backend, **options,
            )  # fmt: skip
        return [*cells.contents, *found]

    *_, statistics, reads = assert_bodies_agree(run)
    assert statistics[0, 0] == 3 and int(reads.min()) >= 3


def test_a_visit_of_more_cells_than_are_taken_together():
    def run(backend):
        cells = Cells(CELLS["soft"], 2, (90, 30))
        found = reencode(
            cells.cell, *cells.contents[:2], cells.parameters, cells.counts, torch.tensor([0.5, 1.0]), 3, 29, 0, Key(3),
            gradient=normals(90, 29), rate=0.3, backend=backend, **STOCHASTIC,
        )  # fmt: skip
        return [*cells.contents, *found]

    assert_bodies_agree(run)


def linear_vectors(count: int = 9) -> Vectors:
    x, d = normals(count, 5), normals(count, 7, seed=2) * 0.3
    x[3], d[5], d[:, 2] = 0, 0, 0
    return Vectors(x, d)


def grouped_vectors() -> Vectors:
    """Two groups of two channels, a 2x1 filter with stride 2: 8 rows, 4 columns, 2 images of 6 positions."""
    patches = Patches.of((4, 3), 2, (2, 1), (2, 1), (1, 1))
    return Vectors(normals(2, 4, 4, 3), normals(2, 8, 6, seed=2) * 0.3, 2, patches)


BUFFERS = {
    "v2": {"momentum": 0.1},
    "v2 remembers": {"momentum": 0.3, "forget": False, "most": 3},
    "v3": {"chop": 0.3, "d_chop": 0.4, "signed": True},
    "v3 regular": {"chop": 0.4, "random_chop": False, "momentum": 0.2, "most": 2, "signed": True},
    "v4": {"chop": 0.5, "random_chop": False, "beta": 0.5, "signed": True, "compared": True},
    "v4 random": {"chop": 0.5, "beta": 0.3, "d_chop": 0.5, "most": 2, "signed": True, "compared": True},
}


def buffer_of(rows: int, columns: int, gain: float, signed: bool = False, compared: bool = False, **options):
    blank = torch.zeros(rows, columns)
    if signed:
        options |= {"x_sign": torch.ones(columns), "d_sign": torch.ones(rows)}
        options["d_sign"][0] = -1
    if compared:
        options |= {"mean": blank.clone(), "reference": blank.clone()}
    return Buffer(blank, torch.zeros(1 + columns, dtype=torch.int64), gain, **options)


def tensors_of(buffer: Buffer) -> list[Tensor]:
    return [v for v in vars(buffer).values() if isinstance(v, Tensor)]


def assert_buffered_updates_agree(
    cell, vectors: Vectors, settings: dict, how=Read(), rate=0.0, train=PulseTrain(length=5)
):
    def run(backend):
        cells = Cells(cell, 2, (vectors.rows, vectors.columns))
        buffer, means = (
            buffer_of(*cells.held.shape[1:], gain=3.0, **settings),
            torch.zeros(2, dtype=torch.float64),
        )
        found = []
        for u, (period, columns) in enumerate(((3, 2), (1, 1), (vectors.count, vectors.columns + 2))):
            found += buffered_update(
                cells.tile(0), cells.tile(1), vectors, 0.1, Key(8).at(step=u), Key(9), buffer, u * vectors.count + 1,
                period, columns, how, train, means, rate, backend,
            )  # fmt: skip
        return [*cells.contents, *tensors_of(buffer), means, *found]

    _, _, counts, *_ = assert_bodies_agree(run)
    assert int(counts[0].sum()) > 0 and int(counts[1].sum()) > 0


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("settings", ["v2", "v4 random"])
def test_buffered_updates_agree_on_every_cell(cell, settings):
    assert_buffered_updates_agree(CELLS[cell], linear_vectors(), BUFFERS[settings], NOISY)


@pytest.mark.parametrize("settings", BUFFERS)
@pytest.mark.parametrize("rate", [0.0, 0.1], ids=["plain", "auto scale"])
def test_buffered_updates_agree(settings, rate):
    assert_buffered_updates_agree(CELLS["soft"], linear_vectors(), BUFFERS[settings], rate=rate)


@pytest.mark.parametrize(
    ("settings", "rate", "kind"),
    [("v2", 0.0, "stochastic"), ("v3", 0.1, "mean_count"), ("v4 random", 0.1, "deterministic")],
)
def test_buffered_updates_of_grouped_convolutions_agree(settings, rate, kind):
    train = PulseTrain(kind=kind, length=5)
    assert_buffered_updates_agree(CELLS["soft"], grouped_vectors(), BUFFERS[settings], rate=rate, train=train)


# Direct transfers -----------------------------------------------------------------------------------------------------

COLUMNS = 3000


def transferred(y: list[float], lr: float, train=PulseTrain(), how=Read()) -> tuple[Cells, Tensor]:
    """Every column holds ``y``; all of them are transferred once to cells at zero."""
    cells = Cells(PLAIN, 1, (len(y), COLUMNS), spread=0.0)
    source = torch.tensor(y)[:, None].expand(-1, COLUMNS).contiguous()
    return cells, transfer(cells.tile(), source, 0, COLUMNS, 0, lr, Key(1), how, train)


def test_a_transfer_sends_lr_y_over_g_pulses_on_average():
    y, lr = [0.9, -0.5, 0.1, 0.0, -0.02], 0.3
    cells, found = transferred(y, lr)
    counts = cells.counts[0]
    for i, value in enumerate(y):
        assert_mean(f"row {i}", counts[i], lr * abs(value) / 0.1)
        assert_close("moved", cells.held[0, i], math.copysign(0.1, value) * counts[i].float(), atol=1e-6)
    # kappa = 2.7: three slots a column; four rows have a probability.
    assert found.tolist() == [COLUMNS, COLUMNS, int(counts.sum()), 3 * COLUMNS, 0, 4 * COLUMNS, 0]


def test_beyond_the_budget_only_the_large_reads_are_cut():
    cells, found = transferred([0.9, -0.5, 0.1], 1.0, PulseTrain(length=3))
    assert_mean("small", cells.counts[0, 2], 1.0)
    assert bool((cells.counts[0, :2] == 3).all())
    assert found.tolist()[3:] == [3 * COLUMNS, COLUMNS, 3 * COLUMNS, 2 * COLUMNS]


def test_reads_have_noise_and_levels():
    cells, _ = transferred([0.3, -0.9, 0.2], 0.4, how=Read(half=2, bound=1.0))  # levels 0, 0.5, 1
    for i, level in enumerate((0.5, 1.0, 0.0)):
        assert_mean(f"row {i}", cells.counts[0, i], 0.4 * level / 0.1)
    cells, _ = transferred([0.0, 5.0], 0.1, how=Read(half=2, bound=1.0))
    assert_mean("clipped to the bound", cells.counts[0, 1], 1.0)
    cells, found = transferred([0.0] * 4, 1.0, how=Read(noise=0.1))
    assert_mean(
        "mean magnitude of the noise", cells.counts.float().mean(1), 0.1 * math.sqrt(2 / math.pi) / 0.1
    )
    assert_mean("sign of the noise", cells.held, 0.0)
    assert found[1] == COLUMNS


def test_columns_follow_cyclically_and_others_stay():
    cells = Cells(PLAIN, 1, (3, 5), spread=0.0)
    transfer(cells.tile(), torch.ones(3, 5), 4, 3, 0, 1.0, Key(0))
    assert (cells.counts[0] > 0).tolist() == [[True, True, False, False, True]] * 3


def test_a_column_of_zeros_is_a_vector_without_pulses():
    cells = Cells(PLAIN)
    found = transfer(cells.tile(), torch.zeros(7, 5), 0, 5, 0, 1.0, Key(0))
    assert found.tolist() == [5, 0, 0, 0, 0, 0, 0] and int(cells.counts.sum()) == 0


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_draws_follow_the_number_of_the_read(backend):
    def run(*numbers):
        cells = Cells(CELLS["soft"])
        for n in numbers:
            transfer(cells.tile(), normals(7, 5), n % 5, 1, n, 0.3, Key(5), NOISY, backend=backend)
        return cells.held

    together = Cells(CELLS["soft"])
    transfer(together.tile(), normals(7, 5), 1, 3, 1, 0.3, Key(5), NOISY, backend=backend)
    assert torch.equal(run(1, 2, 3), together.held)
    assert not torch.equal(run(6), run(1))


@pytest.mark.parametrize("lr", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_that_makes_no_pulses_is_refused(lr):
    cells = Cells(PLAIN, 2)
    with pytest.raises(AimcError, match="field 'lr'"):
        transfer(cells.tile(), torch.ones(7, 5), 0, 1, 0, lr, Key(0))
    with pytest.raises(AimcError, match="field 'lr'"):
        buffered_update(
            cells.tile(0), cells.tile(1), linear_vectors(), lr, Key(0), Key(1), buffer_of(7, 5, 1.0), 0, 1
        )


def test_trains_that_are_not_pulses_are_refused():
    cells, buffer = Cells(PLAIN, 2), buffer_of(7, 5, 1.0)
    with pytest.raises(AimcError, match="field 'kind'.*'mean_count'"):
        transfer(cells.tile(), torch.ones(7, 5), 0, 1, 0, 1.0, Key(0), train=PulseTrain(kind="mean_count"))
    with pytest.raises(AimcError, match="field 'kind'.*'none'"):
        buffered_update(cells.tile(0), cells.tile(1), linear_vectors(), 1.0, Key(0), Key(1), buffer, 0, 1,
                        train=PulseTrain(kind="none"))  # fmt: skip
    with pytest.raises(AimcError, match="field 'train'.*do not grow"):
        growing = PulseTrain(length_management=False, fixed_length=False)
        buffered_update(cells.tile(0), cells.tile(1), linear_vectors(), 1.0, Key(0), Key(1), buffer, 0, 1,
                        train=growing, rate=0.1)  # fmt: skip
    with pytest.raises(AimcError, match="NaN or infinite"):
        bad = Vectors(torch.full((2, 5), math.nan), torch.ones(2, 7))
        buffered_update(cells.tile(0), cells.tile(1), bad, 1.0, Key(0), Key(1), buffer, 0, 1)
    assert int(cells.counts.sum()) == 0


# Buffers --------------------------------------------------------------------------------------------------------------


class Reader:
    """Reads columns of a fast tile into a buffer; no gradient, so that the fast tile holds what it is given."""

    def __init__(self, rows: int, columns: int, gain: float = 1.0, **settings):
        self.cells = Cells(PLAIN, 2, (rows, columns), spread=0.0)
        self.buffer, self.columns = buffer_of(rows, columns, gain, **settings), columns
        if self.buffer.d_sign is not None:
            self.buffer.d_sign.fill_(1)

    def read(self, values, columns: int | None = None) -> Tensor:
        """Hold ``values``, read so many columns (all), return the statistics of the slow tile."""
        self.cells.held[0] = torch.as_tensor(values)
        rows = self.cells.held.shape[1]
        nothing = Vectors(torch.zeros(1, self.columns), torch.zeros(1, rows))
        _, found = buffered_update(
            self.cells.tile(0), self.cells.tile(1), nothing, 1.0, Key(0), Key(7), self.buffer, 0, 1,
            columns if columns is not None else self.columns,
        )  # fmt: skip
        return found

    @property
    def h(self) -> float:
        return round(float(self.buffer.h[0, 0]), 5)

    @property
    def pulses(self) -> int:
        """Up minus down on the first slow cell."""
        return round(float(self.cells.held[1, 0, 0]) / 0.1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("settings", "gain", "buffers", "pulses"),
    [
        ({"momentum": 0.1}, 1.0, [0.4, 0.8, 0.12, 0.52, 0.92, 0.132], [0, 0, 1, 1, 1, 2]),
        ({"momentum": 0.1, "forget": False}, 1.0, [0.4, 0.8, 0.3, 0.7, 0.2, 0.6], [0, 0, 1, 1, 2, 2]),
        ({}, 2.5, [0.0, 0.0], [1, 2]),
        ({"forget": False}, 7.0, [1.8, 3.6], [1, 2]),  # 2.8 is one pulse and 1.8 more
        ({"most": 2, "momentum": 0.5}, 7.0, [1.4, 2.1], [2, 4]),
        ({"most": 5, "forget": False}, 7.0, [0.8, 0.6], [2, 5]),
    ],
)
def test_buffer_arithmetic(settings, gain, buffers, pulses, sign):
    reader = Reader(1, 1, gain, **settings)
    for h, count in zip(buffers, pulses, strict=True):
        reader.read([[0.4 * sign]])
        assert (reader.h, reader.pulses) == (pytest.approx(h * sign, abs=1e-5), count * sign)


def test_a_read_comes_after_every_period_th_vector_and_columns_take_turns():
    cells, buffer = Cells(PLAIN, 2, (2, 3), spread=0.0), buffer_of(2, 3, 1.0)
    cells.held[0] = torch.tensor([0.1, 0.2, 0.3])
    nothing = Vectors(torch.zeros(7, 3), torch.zeros(7, 2))
    # The vectors are numbers 2 to 8; numbers 3 and 6 end a period.
    fast, slow = buffered_update(cells.tile(0), cells.tile(1), nothing, 1.0, Key(0), Key(1), buffer, 1, 3, 2)
    assert fast.tolist() == [7, 0, 0, 0, 0, 0, 0] and slow.tolist() == [4, 4, 0, 0, 0, 0, 0]
    assert int(buffer.visits[0]) == 4
    assert_close("buffer", buffer.h, torch.tensor([[0.2, 0.2, 0.3]] * 2), atol=1e-6)  # columns 0, 1, 2, 0


def test_signs_turn_the_pulses_and_what_is_read():
    """Rows and columns with a negative sign hold the opposite, and contribute it with the opposite sign."""
    x, d = normals(50, 5), normals(50, 7, seed=2) * 0.05
    held, buffers = [], []
    x_sign, d_sign = torch.tensor([1.0, -1, 1, -1, -1]), torch.tensor([1.0, -1, -1, 1, 1, -1, 1])
    for signs in ({}, {"x_sign": x_sign, "d_sign": d_sign}):
        cells, buffer = Cells(PLAIN, 2, spread=0.0), buffer_of(7, 5, 0.3, **signs)
        buffered_update(
            cells.tile(0), cells.tile(1), Vectors(x, d), 0.1, Key(0), Key(1), buffer, 0, 50, columns=5
        )
        held.append(cells.held[0])
        buffers.append(buffer.h)
    assert float(held[0].abs().sum()) > 1
    assert_close("fast tile", held[1], held[0] * d_sign[:, None] * x_sign, atol=0)
    assert_close("buffer", buffers[1], buffers[0], atol=0)


def test_choppers_flip_with_their_probability_each_after_its_own_column():
    reader = Reader(60, 80, signed=True, chop=0.1, d_chop=0.3)
    x_sign, d_sign = reader.buffer.x_sign, reader.buffer.d_sign
    column_flips, row_flips = [], []
    for _ in range(40):
        before = x_sign.clone(), d_sign.clone()
        reader.read(0.0, 79)
        assert torch.equal(before[1], d_sign)  # rows wait for the last column
        reader.read(0.0, 1)
        flags = reader.buffer.visits[1:] != 0
        assert torch.equal(flags, x_sign != before[0])
        column_flips.append(flags)
        row_flips.append(d_sign != before[1])
    assert_mean("columns", torch.stack(column_flips), 0.1)
    assert_mean("rows", torch.stack(row_flips), 0.3)


@pytest.mark.parametrize(("chop", "every"), [(0.25, 4), (0.3, 4), (1.0, 2)])
def test_regular_choppers_flip_in_every_so_many_th_sweep(chop, every):
    reader = Reader(2, 3, signed=True, chop=chop, random_chop=False)
    for sweep in range(3 * every):
        before = reader.buffer.x_sign.clone()
        reader.read(0.0)
        assert torch.equal(reader.buffer.x_sign, -before if sweep % every == every - 1 else before), sweep
    assert bool((reader.buffer.d_sign == 1).all())


def test_choppers_without_probability_stay():
    reader = Reader(3, 4, signed=True)
    for _ in range(20):
        reader.read(0.0)
    assert bool((reader.buffer.x_sign == 1).all() and (reader.buffer.visits[1:] == 0).all())


def test_the_reference_is_the_mean_before_the_last_flip_and_the_first_period_writes_nothing():
    """One cell by hand: flips after sweeps 1, 3, 5, ..., writes from sweep 3 on."""
    beta, gain = 0.25, 2.0
    reader = Reader(1, 1, gain, signed=True, compared=True, chop=0.5, random_chop=False, beta=beta, most=9)
    mean = reference = h = 0.0
    sign, pulses = 1, 0
    for sweep, y in enumerate((0.9, 0.8, 0.9, -0.9, -0.2, 0.6, 0.9, -0.9)):
        if sweep in (2, 4, 6):
            reference = mean
        h += sign * (y - reference) * gain
        mean = (1 - beta) * mean + beta * y
        if sweep > 2 and abs(h) >= 1:
            pulses += math.trunc(h)
            h = 0.0
        if sweep % 2:
            sign = -sign
        reader.read([[y]])
        found = [float(v) for v in (reader.buffer.mean, reader.buffer.reference, reader.buffer.h)]
        assert found == pytest.approx([mean, reference, h], abs=1e-5), sweep
        assert (reader.pulses, int(reader.buffer.x_sign[0])) == (pulses, sign), sweep
    assert pulses != 0


def test_the_running_means_scale_the_rate():
    """The first vector sets the means; then they follow with their rate, and the rate is divided by their product."""
    x, d = torch.tensor([[0.5], [1.0]]), torch.tensor([[0.2], [0.4]])
    means = torch.zeros(2, dtype=torch.float64)
    cells = Cells(PLAIN, 2, (1, 1), spread=0.0)
    fast, _ = buffered_update(
        cells.tile(0), cells.tile(1), Vectors(x, d), 0.2, Key(0), Key(1), buffer_of(1, 1, 1.0), 0, 9,
        train=PulseTrain(kind="deterministic"), means=means, rate=0.1,
    )  # fmt: skip
    assert means.tolist() == pytest.approx([0.55, 0.22])
    # 0.2 / 0.1 = 2 pulses for the average vector, then 2 * (1.0 * 0.4) / (0.55 * 0.22) = 6.6.
    assert (int(fast[2]), round(float(cells.held[0, 0, 0]), 5)) == (9, -0.9)


# Whole steps ----------------------------------------------------------------------------------------------------------


def test_whole_steps_leave_exactly_the_remainder():
    chi = normals(40, 30) * 0.5
    before, cells = chi.clone(), Cells(PLAIN, 1, (40, 30), spread=0.0)
    found = whole_steps(cells.tile(), chi, 0.1, 0, Key(0), most=7)
    sent = torch.where(before > 0, 1, -1) * cells.counts[0]
    assert bool(((chi.abs() < 0.1) | (cells.counts[0] == 7)).all()) and int(cells.counts.max()) == 7
    assert bool((chi * before >= 0).all())  # never more than there was
    assert_close("nothing is lost", chi.double() + 0.1 * sent.double(), before.double(), atol=2e-7)
    assert_close("moved", cells.held[0], (0.1 * sent).clamp(-1, 1), atol=1e-6)
    assert found.tolist() == [1, 0, int(cells.counts.sum()), 0, 0, 0, 0]


def test_what_exceeds_the_most_pulses_waits():
    chi, cells = torch.full((1, 1), -0.75), Cells(PLAIN, 1, (1, 1), spread=0.0)
    for n, left in enumerate((-0.45, -0.15, -0.05, -0.05)):
        whole_steps(cells.tile(), chi, 0.1, n, Key(0), most=3)
        assert float(chi) == pytest.approx(left, abs=1e-6)
    assert float(cells.held) == pytest.approx(-0.7)


# Re-encoding ----------------------------------------------------------------------------------------------------------

SHARES = torch.tensor([0.125, 0.25, 0.5, 1.0])


def reencoded(cells: Cells, gradient: Tensor | None = None, number: int = 0, column: int = 0, **options):
    columns = options.pop("columns", cells.held.shape[2])
    return reencode(
        cells.cell, *cells.contents[:2], cells.parameters, cells.counts, SHARES[-len(cells.held) :], column, columns,
        number, Key(4), gradient=gradient, rate=options.pop("rate", 1.0), **options,
    )  # fmt: skip


def composite(cells: Cells) -> Tensor:
    return torch.tensordot(SHARES[-len(cells.held) :], cells.held, 1)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_without_a_gradient_the_composite_moves_by_less_than_the_finest_step(backend):
    cells = Cells(PLAIN, 4, (40, 6), spread=0.5)
    before, held = composite(cells), cells.held.clone()
    statistics, _ = reencoded(cells, tries=12, last_tries=12, backend=backend)
    assert not torch.equal(cells.held, held) and int(statistics[3, 2]) > 0
    assert_close("composite", composite(cells), before, atol=0.125 * 0.1 + 1e-6)
    # What is below a tile is then less than the share of its step that makes it fire.
    for t in range(1, 4):
        below = torch.tensordot(SHARES[:t], cells.held[:t], 1)
        assert float(below.abs().max()) <= (0.6 * SHARES[t] + 0.125) * 0.1 + 1e-6


@pytest.mark.parametrize(
    "cell", [PLAIN, SoftBounds.with_states(10, dw_min_std=0.0, **ALIKE)], ids=["constant", "soft"]
)
def test_the_mean_change_is_the_gradients(cell):
    gradient, rate, changes = normals(60, 50), 0.02, []
    for n in range(10):
        cells = Cells(cell, 4, (60, 50), spread=0.2)
        before = composite(cells)
        reencoded(cells, gradient, 50 * n, rate=rate, tries=4, last_tries=4)
        changes.append(composite(cells) - before)
    error = torch.stack(changes).double() + rate * gradient
    assert_mean("mean", error, 0.0)
    assert_mean("slope", error * gradient, 0.0)
    assert float((error * gradient).std()) > 0  # a step is 0.0125, a change 0.02: it cannot be exact


@pytest.mark.parametrize("with_gradient", [False, True])
def test_decay_takes_a_share_of_what_was_read_off(with_gradient):
    gradient = normals(60, 50) if with_gradient else None
    pull, changes, content = 0.02 * gradient if gradient is not None else torch.zeros(60, 50), [], None
    for n in range(10):
        cells = Cells(PLAIN, 4, (60, 50), spread=0.5)
        content = composite(cells)
        reencoded(cells, gradient, 50 * n, rate=0.02, decay=0.05, tries=12, last_tries=12)
        changes.append(composite(cells) - content)
    assert content is not None
    error = torch.stack(changes).double() + pull + 0.05 * content
    assert_mean("mean", error, 0.0)
    assert_mean("slope", error * content, 0.0)


COARSE = ConstantStep(dw_min=0.5, dw_min_std=0.0, **ALIKE)
QUARTERS = torch.tensor([0.0625, 0.25, 1.0])


def carried(
    held: list[float], change: float, backend: str, visits: int = 1, rows: int = 7, threshold: float = 0.6
) -> tuple[Cells, Tensor]:
    """Three tiles of four states that hold the same everywhere, and what a change of all weights made of it."""
    cells = Cells(COARSE, 3, (rows, 5), spread=0.0)
    cells.held[:] = torch.tensor(held).view(3, 1, 1)
    before = torch.tensordot(QUARTERS, cells.held, 1)
    for n in range(visits):
        reencode(
            COARSE, *cells.contents[:2], cells.parameters, cells.counts, QUARTERS, 0, 5, 5 * n, Key(4),
            gradient=torch.full((rows, 5), -change), rate=1.0, threshold=threshold, tries=4, last_tries=4,
            backend=backend,
        )  # fmt: skip
    return cells, torch.tensordot(QUARTERS, cells.held, 1) - before


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("held", [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
def test_a_more_significant_tile_steps_where_the_finest_cannot(held, sign):
    """A quarter of a step below is too little for the threshold: without a carry nothing would move, ever."""
    step = 0.0625 * 0.5
    _, change = carried([sign * h for h in held], sign * 0.2 * step, "cpu", rows=2000)
    assert sorted({round(float(c) / step, 3) for c in change.flatten()}) == sorted([0.0, sign])
    assert_mean("mean", change.double(), sign * 0.2 * step)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_carry_of_a_whole_step_or_more_is_certain(backend):
    step = 0.0625 * 0.5
    for steps in (1.0, 2.0, 3.0):
        # A threshold that is never met, so that only a carry reaches the tile above.
        cells, change = carried([1.0, 0.0, 0.0], steps * step, backend, threshold=100.0)
        assert_close("change", change, torch.full((7, 5), steps * step), atol=1e-6)
        assert cells.counts[1].unique().tolist() == [1] and not bool(cells.counts[2].any())


def test_nothing_is_carried_beyond_the_last_tile_nor_without_a_change():
    cells, change = carried([1.0, 1.0, 1.0], 0.1, "cpu")
    assert not bool(change.any()) and not bool(cells.counts.any())
    cells, change = carried([1.0, 0.0, 0.0], 0.0, "cpu", visits=3)
    assert not bool(change.any()) and not bool(cells.counts.any())


def test_nothing_above_tile_0_fires_below_the_threshold():
    for share, firing in ((0.59, 1), (0.61, 2)):
        for top in (1, 2, 3):
            cells = Cells(PLAIN, 4, spread=0.0)
            gradient = torch.full((7, 5), -share * 0.1 * float(SHARES[top]))
            statistics, reads = reencoded(cells, gradient, tries=1, stochastic=False)
            fired = (statistics[:, 2] > 0).tolist()
            assert fired[top + 1 :] == [False] * (3 - top), (share, top)
            assert fired[top] == (firing == 2), (share, top)
            assert reads[top + 1 :].tolist() == [5] * (3 - top)


def test_a_step_counts_as_the_floor_at_least_and_a_tiny_one_not_at_all():
    cell = SoftBounds.with_states(20, dw_min_std=0.0, **ALIKE)  # a step of 0.1 (1 - w)
    for at, floor, fires in ((0.9, 0.0, True), (0.9, 1.0, False), (0.9, 0.4, True), (0.97, 0.0, False)):
        cells = Cells(cell, 2, spread=0.0)
        cells.held[1] = at
        reencoded(cells, torch.full((7, 5), -0.03), floor=floor, tries=1)
        assert bool((cells.counts[1] == int(fires)).all()), (at, floor)


@pytest.mark.parametrize(("stochastic", "counts"), [(False, (2, 3)), (True, (4, 4))])
def test_tries_bound_the_pulses_of_a_visit(stochastic, counts):
    """A carry is one pulse more, and what comes after it as many as before at most."""
    cells = Cells(PLAIN, 2, spread=0.0)
    statistics, reads = reencoded(
        cells, torch.full((7, 5), 0.9), tries=3, last_tries=2, stochastic=stochastic
    )
    assert [cells.counts[t].unique().tolist() for t in (0, 1)] == [[n] for n in counts]
    assert_close("down", cells.held, -0.1 * torch.tensor(counts).view(2, 1, 1).expand(2, 7, 5), atol=1e-6)
    assert statistics[:, 2].tolist() == [35 * n for n in counts]
    assert reads.tolist() == [5 * (1 + n) for n in counts]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_without_stochastic_rounding_tile_0_takes_the_threshold(backend):
    for share, count in ((0.59, 0), (0.61, 1), (1.61, 2)):
        cells = Cells(PLAIN, 2, spread=0.0)
        gradient = torch.full((7, 5), -share * 0.1 * 0.5)
        reencoded(cells, gradient, threshold=0.6, tries=0, last_tries=2, stochastic=False, backend=backend)
        assert cells.counts[0].unique().tolist() == [count], share


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("cell", ["soft", "write noise", "ladder"])
def test_pulses_and_reads_are_recounted_from_the_devices(cell, stochastic):
    cells, pulses, reads = Cells(CELLS[cell], 4), torch.zeros(4, dtype=torch.int64), torch.zeros(4)
    for n in range(6):
        before, held = cells.counts.clone(), cells.held.clone()
        found, seen = reencoded(
            cells, normals(7, 3, seed=n) * 0.3, 3 * n, 3 * n % 5, columns=3, tries=3, last_tries=2, how=NOISY,
            stochastic=stochastic,
        )  # fmt: skip
        new = cells.counts - before
        pulses += new.sum((1, 2))
        # Every row that needs another pulse takes it in the same try, and each try with a pulse is read back.
        least = 3 + new.amax(1).sum(1)
        # A carry and what comes after it are further tries, of the cells that need them.
        assert bool(
            (seen == least).all()
            if not stochastic
            else ((seen >= least) & (seen <= 3 + new.sum((1, 2)))).all()
        )
        visited = torch.zeros(5, dtype=torch.bool)
        visited[torch.arange(3 * n, 3 * n + 3) % 5] = True
        assert not bool(new[:, :, ~visited].any()) and torch.equal(
            held[:, :, ~visited], cells.held[:, :, ~visited]
        )
        assert found[:, 2].tolist() == new.sum((1, 2)).tolist()
        assert found[:, :2].tolist() == [[3, 3]] * 4 and not bool(found[:, 3:].any())
        reads += seen
    assert torch.equal(pulses, cells.counts.sum((1, 2))) and int(pulses.min()) > 0


@pytest.mark.parametrize("columns", [0, 6])
def test_no_column_is_visited_twice(columns):
    with pytest.raises(AimcError, match="field 'columns'.*between 1 and 5"):
        reencoded(Cells(PLAIN, 2), columns=columns)
