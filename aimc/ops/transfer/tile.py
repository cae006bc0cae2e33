"""What the transfers of ``ops.transfer`` take."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from aimc.cells.pulsed import PulsedCell


@dataclasses.dataclass(frozen=True)
class Tile:
    """One array of cells ``[R, C]``: what is held, what is read, parameters, and pulses so far (int32)."""

    cell: PulsedCell
    held: Tensor
    w: Tensor
    parameters: Tensor
    counts: Tensor


@dataclasses.dataclass(frozen=True)
class Read:
    """How a one-hot read comes out: noise (standard deviation), then a converter of ``2 half + 1`` levels over ±bound.

    ``half`` 0 is no converter.
    """

    noise: float = 0.0
    half: int = 0
    bound: float = 1.0
