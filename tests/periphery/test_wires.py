"""A crossbar with resistive wires against nodal analysis, closed forms, and the ladder of one column."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import splu

from aimc.errors import AimcError
from aimc.periphery import Wires, solve_ladder
from tests.helpers import assert_close

FOUR = Wires(row=2.0, column=0.5, source=7.0, sense=10.0)


def random_array(columns: int, rows: int, *arrays: int) -> torch.Tensor:
    """Devices of 0 to 25 uS, one in ten of them open."""
    g = torch.rand(*arrays, columns, rows, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.where(g < 0.1, 0.0, g * 25)


def nodal_matrix(siemens: np.ndarray, wires: Wires) -> scipy.sparse.csc_array:
    """Kirchhoff at every crossing, branch by branch; unknowns: the nodes on the rows' wires, then on the columns'.

    ``siemens`` is ``[columns, rows]``; terminals are at zero volts.
    """
    columns, rows = siemens.shape
    entries: list[tuple[int, int, float]] = []

    def branch(a: int, b: int | None, conductance: float) -> None:
        entries.append((a, a, conductance))
        if b is not None:
            entries.extend([(b, b, conductance), (a, b, -conductance), (b, a, -conductance)])

    for i in range(rows):
        for j in range(columns):
            above = i * columns + j
            below = above + rows * columns
            branch(above, below, siemens[j, i])
            branch(above, above - 1 if j else None, 1 / (wires.row + (0 if j else wires.source)))
            branch(below, below - columns if i else None, 1 / (wires.column + (0 if i else wires.sense)))
    a, b, values = zip(*entries)
    return scipy.sparse.csc_array((values, (a, b)))  # adds up what meets in one place


def nodal_conductance(devices: torch.Tensor, wires: Wires) -> tuple[torch.Tensor, torch.Tensor]:
    """Between terminals, uS: with each row at 1 V in turn ``[columns, rows]``, each column ``[rows, columns]``."""
    columns, rows = devices.shape
    lead_in, lead_out = 1 / (wires.row + wires.source), 1 / (wires.column + wires.sense)
    first, last = np.arange(rows) * columns, rows * columns + np.arange(columns)
    injected = np.zeros((2 * rows * columns, rows + columns))
    injected[first, np.arange(rows)] = lead_in
    injected[last, rows + np.arange(columns)] = lead_out
    matrix = nodal_matrix(devices.numpy() * 1e-6, wires)
    small = matrix.shape[0] < 200
    potential = np.linalg.solve(matrix.toarray(), injected) if small else splu(matrix).solve(injected)
    forward, back = potential[last, :rows] * lead_out, potential[first, rows:] * lead_in
    return torch.tensor(forward * 1e6), torch.tensor(back * 1e6)


def test_a_large_array_obeys_kirchhoff_both_ways():
    wires = Wires(row=2.0, column=0.5, source=10.0, sense=10.0)
    devices = random_array(64, 64)
    forward, back = nodal_conductance(devices, wires)
    there, here = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_close("forward, uA", wires.forward(devices, there), there @ forward.T, rtol=1e-6, atol=1e-9)
    assert_close("transposed, uA", wires.transposed(devices, here), here @ back.T, rtol=1e-6, atol=1e-9)
    assert float((1 - forward / devices).nan_to_num().abs().max()) > 1e-3, "the wires matter"


@pytest.mark.parametrize("ohm", [1.0, 1e4])
@pytest.mark.parametrize("columns, rows", [(1, 1), (1, 5), (5, 1), (3, 7), (7, 3)])
def test_any_shape_and_any_load(columns, rows, ohm):
    wires = FOUR.replace(**{name: ohm * getattr(FOUR, name) for name in FOUR.field_names()})
    devices = random_array(columns, rows)
    forward, _ = nodal_conductance(devices, wires)
    assert_close("conductance, uS", wires.conductance(devices), forward, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("columns, rows", [(5, 5), (4, 9)])
def test_effective_matrices_are_transposes_once_the_terminals_are_swapped(columns, rows):
    devices = random_array(columns, rows)
    forward = FOUR.forward(devices, torch.eye(rows)).mT
    swapped = FOUR.replace(source=FOUR.sense, sense=FOUR.source)
    assert_close("back", swapped.transposed(devices, torch.eye(columns)), forward, rtol=1e-10, atol=1e-12)
    unswapped = FOUR.transposed(devices, torch.eye(columns))
    assert float((unswapped / forward - 1).nan_to_num().abs().max()) > 1e-5, "who drives matters"


@pytest.mark.parametrize("back", [False, True])
def test_one_device_is_in_series_with_everything(back):
    one, volt = torch.tensor([[25.0]]), torch.tensor([[0.2]])
    current = (FOUR.transposed if back else FOUR.forward)(one, volt)
    assert float(current) == pytest.approx(
        1e6 * float(volt) / (1 / 25e-6 + 2.0 + 7.0 + 0.5 + 10.0), rel=1e-12
    )


def test_without_resistance_the_devices_are_the_matrix():
    devices = random_array(4, 6)
    none = Wires(row=0.0, column=0.0)
    assert_close("conductance", none.conductance(devices), devices, rtol=1e-12)
    assert_close("open", FOUR.conductance(torch.zeros(3, 2)), torch.zeros(3, 2, dtype=torch.float64))


@pytest.mark.parametrize("ohm", [0.35, 2e4])
def test_resistance_in_the_columns_alone_is_the_ladder(ohm):
    devices, volts = random_array(4, 9), torch.eye(9, dtype=torch.float64)
    wires = Wires(row=0.0, column=ohm)
    assert_close("current", wires.forward(devices, volts), solve_ladder(devices, volts, ohm), rtol=1e-9)


def test_a_batch_is_its_arrays_one_by_one():
    devices = random_array(3, 4, 2, 2)
    volts = torch.ones(5, 4)
    together = FOUR.forward(devices, volts)
    assert together.shape == (2, 2, 5, 3)
    assert_close("an array of it", together[1, 0], FOUR.forward(devices[1, 0], volts), rtol=1e-12)


def test_gradients_pass_through_the_wires():
    devices = random_array(2, 3).clamp_min(0.1).requires_grad_()
    assert torch.autograd.gradcheck(FOUR.replace(row=2e4).conductance, devices)


@pytest.mark.parametrize(
    "devices, volts",
    [
        (torch.ones(3), torch.ones(1, 3)),
        (torch.ones(2, 3), torch.ones(1, 2)),
        (torch.ones(2, 3), torch.ones(3)),
        (-torch.ones(2, 3), torch.ones(1, 3)),
        (torch.full((2, 3), torch.nan), torch.ones(1, 3)),
        (torch.full((2, 3), torch.inf), torch.ones(1, 3)),
    ],
)
def test_nonsense_is_refused(devices, volts):
    with pytest.raises(AimcError):
        FOUR.forward(devices, volts)


@pytest.mark.parametrize("name", ["row", "column", "source", "sense"])
def test_a_negative_resistance_is_refused_by_name(name):
    with pytest.raises(AimcError, match=name):
        Wires(**{name: -1.0})


@pytest.mark.parametrize("name", ["row", "column", "source", "sense"])
@pytest.mark.parametrize("ohm", [1.1e12, 1e150, 1e308])
def test_an_absurd_resistance_is_refused_by_name(name, ohm):
    with pytest.raises(AimcError, match=f"'{name}': must be at most 1e.12 Ohm"):
        Wires(**{name: ohm})


def test_the_largest_resistances_give_numbers():
    most = Wires(row=1e12, column=1e12, source=1e12, sense=1e12)
    found = most.conductance(random_array(30, 20))
    assert bool((found.isfinite() & (found.abs() < 1e-6)).all())
    one = float(most.conductance(torch.tensor([[25.0]])))
    assert one == pytest.approx(1e6 / (4e12 + 4e4), rel=1e-9)
