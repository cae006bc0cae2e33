"""What one memory cell does: programming, drift, read noise; or, pulsed, its steps. Cells know nothing of layers.

To add a cell, copy the nearest sibling, list it here, in ``tests/cells/test_cells.py`` (a pulsed one: in
:data:`PULSED_CELLS` and ``tests/cells/test_pulsed.py``) and in ``docs/cells``.
"""

from __future__ import annotations

from collections.abc import Callable

from aimc.cells import measured
from aimc.cells.base import Cell, Faults, ProgrammedCells
from aimc.cells.constant_step import ConstantStep
from aimc.cells.exp_step import ExpStep
from aimc.cells.fitting import CellFit, fit_cell
from aimc.cells.hermes import Hermes
from aimc.cells.ideal import Ideal
from aimc.cells.ladder import Ladder
from aimc.cells.linear_step import LinearStep
from aimc.cells.pcm import PCM
from aimc.cells.piecewise_step import PiecewiseStep
from aimc.cells.pow_step import PowStep
from aimc.cells.pow_step_reference import PowStepReference
from aimc.cells.pulsed import PulsedCell
from aimc.cells.single_exponent import SingleExponentPCM
from aimc.cells.soft_bounds import SoftBounds, reram, soft_bounds_pmax
from aimc.cells.soft_bounds_reference import SoftBoundsReference
from aimc.cells.tabulated import TabulatedPCM

__all__ = [
    "PCM",
    "PULSED_CELLS",
    "Cell",
    "CellFit",
    "ConstantStep",
    "ExpStep",
    "Faults",
    "Hermes",
    "Ideal",
    "Ladder",
    "LinearStep",
    "PiecewiseStep",
    "PowStep",
    "PowStepReference",
    "ProgrammedCells",
    "PulsedCell",
    "SingleExponentPCM",
    "SoftBounds",
    "SoftBoundsReference",
    "TabulatedPCM",
    "fit_cell",
    "measured",
    "reram",
    "soft_bounds_pmax",
]

PULSED_CELLS: dict[str, Callable[..., PulsedCell]] = {
    "ConstantStep": ConstantStep,
    "LinearStep": LinearStep,
    "SoftBounds": SoftBounds,
    "SoftBoundsReference": SoftBoundsReference,
    "ExpStep": ExpStep,
    "PowStep": PowStep,
    "PowStepReference": PowStepReference,
    "PiecewiseStep": PiecewiseStep,
    "Ladder": Ladder,
    "soft_bounds_pmax": soft_bounds_pmax,
    "reram": reram,
    "reram_om": measured.reram_om,
    "reram_hfo2": measured.reram_hfo2,
    "reram_es": measured.reram_es,
    "reram_sb": measured.reram_sb,
    "capacitor": measured.capacitor,
    "ecram": measured.ecram,
    "ecram_mo": measured.ecram_mo,
    "pcm_pulsed": measured.pcm_pulsed,
    "idealized": measured.idealized,
    "gokmen_vlasov": measured.gokmen_vlasov,
}
"""The pulsed cells by name: types with default fields, and functions that fill in measured ones. All take fields."""
