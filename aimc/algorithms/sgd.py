"""Plain stochastic gradient descent by pulses on one array, or on one of pairs."""

from __future__ import annotations

from aimc.algorithms.base import Array, State
from aimc.algorithms.pairs import MINUS, PLUS, Paired, halves
from aimc.ops.pulsed_update import Vectors


class AnalogSGD(Paired):
    """Every gradient vector goes straight to the one array that is the weight, or to the one of two that it concerns.

    Source: T. Gokmen and Y. Vlasov, Front. Neurosci. 10, 333 (2016). With few states and an uneven response the array
    is drawn to its symmetry point; see the Tiki-Taka family and residual learning for the ways out.

    Fields (see :class:`Paired`).

    Example:
        >>> from aimc.algorithms import Pair
        >>> AnalogSGD().tile_count, AnalogSGD(pair=Pair()).tile_count
        (1, 2)
    """

    def step(self, array: Array, state: State, vectors: Vectors, lr: float) -> None:
        if self.pair is None:
            self.pulse(array, state, 0, vectors, lr / array.scale)
        else:
            for tile, half in zip((MINUS, PLUS), halves(vectors), strict=True):
                self.pulse(array, state, tile, half, lr / array.scale)
        self.finish(array, state, vectors)
