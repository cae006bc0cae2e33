"""What one memory cell does: programming, drift, read noise. Cells know nothing of layers.

To add a cell, copy the nearest sibling, list it here, in ``tests/cells/test_cells.py`` and in ``docs/cells``.
"""

from aimc.cells.base import Cell, Faults, ProgrammedCells
from aimc.cells.hermes import Hermes
from aimc.cells.ideal import Ideal
from aimc.cells.pcm import PCM
from aimc.cells.single_exponent import SingleExponentPCM
from aimc.cells.tabulated import TabulatedPCM

__all__ = ["PCM", "Cell", "Faults", "Hermes", "Ideal", "ProgrammedCells", "SingleExponentPCM", "TabulatedPCM"]
