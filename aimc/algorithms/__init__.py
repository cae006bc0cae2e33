"""In-memory training: weights that live in cells and change only by pulses. One file an algorithm.

To add one, copy the nearest sibling, list it here, in ``tests/algorithms/helpers.py`` and in ``docs/algorithms``.
"""

from aimc.algorithms.base import Algorithm, Array, State
from aimc.algorithms.sgd import AnalogSGD

__all__ = ["ALGORITHMS", "Algorithm", "AnalogSGD", "Array", "State"]

ALGORITHMS: dict[str, type[Algorithm]] = {"sgd": AnalogSGD}
"""The algorithms by the name that recipes use."""
