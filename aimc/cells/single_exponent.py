"""The simplified phase-change model with one drift exponent for every device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aimc.cells.base import Cell


class SingleExponentPCM(Cell):
    """One signed conductance per weight, one deterministic exponent, no read noise.

    A model that some published code uses; kept so that its tables can be reproduced and compared. Drift is the same
    factor for every device, so any compensation undoes it exactly: a network that survives here has not been shown to
    survive on a chip. Use :class:`aimc.cells.PCM` for that.

    Fields:
        exponent: the drift exponent.
        t0: no drift before it; after it ``(t/t0)^-exponent``, s.
        programming: as in :class:`aimc.cells.PCM`.

    Example:
        >>> round(math.exp(-0.05 * SingleExponentPCM().log_age(31536000.0)), 4)
        0.4899
    """

    exponent: float = 0.05
    programming: tuple[float, ...] = (0.26348, 1.9650, -1.1731)
    t0: float = 20.0
    programming_scale: float = 1.0

    def validate(self):
        super().validate()
        self.require(self.t0 > 0, "t0", f"must be positive, got {self.t0}")
        self.require(0 < len(self.programming) <= 4, "programming", "takes one to four coefficients")
        self.require(self.exponent >= 0, "exponent", "must not be negative")
        self.require(self.g_min == 0, "g_min", "a signed conductance starts at 0")

    @property
    def devices(self) -> int:
        return 1

    @property
    def programming_polynomial(self) -> tuple[float, ...]:
        return tuple(c * self.programming_scale / 25.0 for c in self.programming)

    def drift_exponent(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The one exponent, without spread."""
        return torch.full_like(g, self.exponent), torch.zeros_like(g)

    def read_noise_std(self, g_target: Tensor, t: float | Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(g_target)

    def log_age(self, t: float) -> float:
        return max(0.0, math.log(t / self.t0)) if t > 0 else 0.0

    def log_read(self, t: float) -> float:
        return 1.0
