"""Plain stochastic gradient descent by pulses on one array."""

from __future__ import annotations

from aimc.algorithms.base import Algorithm, Array, State
from aimc.ops.pulsed_update import Vectors


class AnalogSGD(Algorithm):
    """Every gradient vector goes straight to the one array that is the weight.

    Source: T. Gokmen and Y. Vlasov, Front. Neurosci. 10, 333 (2016). With few states and an uneven response the array
    is drawn to its symmetry point; see the Tiki-Taka family and residual learning for the ways out.

    Example:
        >>> AnalogSGD().tile_count
        1
    """

    def step(self, array: Array, state: State, vectors: Vectors, lr: float) -> None:
        self.pulse(array, state, 0, vectors, lr / array.scale)
        self.finish(array, state, vectors)
