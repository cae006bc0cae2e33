"""A cell without any imperfection."""

from __future__ import annotations

import torch
from torch import Tensor

from aimc.cells.base import Cell
from aimc.errors import AimcError


class Ideal(Cell):
    """Holds exactly what was written, for ever. Asking it for a later time is an error, not a silent nothing.

    Example:
        >>> Ideal().drifts
        False
    """

    @property
    def drifts(self) -> bool:
        return False

    @property
    def programming_polynomial(self) -> tuple[float, ...]:
        return (0.0,)

    def drift_exponent(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Zero, without spread."""
        return torch.zeros_like(g), torch.zeros_like(g)

    def read_noise_std(self, g_target: Tensor, t: float | Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(g_target)

    def log_age(self, t: float) -> float:
        if t > 0:
            raise AimcError(
                "an ideal cell does not drift; choose a cell that does, such as aimc.cells.PCM", field="cell"
            )
        return 0.0

    def log_read(self, t: float) -> float:
        return 1.0
