"""Phase-change memory with a drift exponent measured by the user."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from aimc.cells.base import DriftingCell
from aimc.cells.pcm import pcm_read_noise


class TabulatedPCM(DriftingCell):
    """A cell whose drift exponents come from a table; programming error and read noise follow :class:`aimc.cells.PCM`.

    Fields:
        conductance: table points, uS, increasing.
        exponent_mean, exponent_std: mean and device-to-device spread of the exponent at each point; between points
            they are interpolated linearly, outside the first and last value holds.
        programming, t0, t_read and the scales: as in :class:`aimc.cells.PCM`.

    Example:
        >>> import torch
        >>> cell = TabulatedPCM(conductance=(0, 25), exponent_mean=(0.1, 0.05), exponent_std=(0.04, 0.01))
        >>> [round(float(v), 4) for v in cell.drift_exponent(torch.tensor(12.5))]
        [0.075, 0.025]
    """

    conductance: tuple[float, ...]
    exponent_mean: tuple[float, ...]
    exponent_std: tuple[float, ...]
    programming: tuple[float, ...] = (0.26348, 1.9650, -1.1731)

    def validate(self):
        super().validate()
        self.require(0 < len(self.programming) <= 4, "programming", "takes one to four coefficients")
        self.require(len(self.conductance) >= 2, "conductance", "needs at least two points")
        pairs = itertools.pairwise(self.conductance)
        self.require(all(a < b for a, b in pairs), "conductance", "must be increasing")
        self.require(self.conductance[0] >= 0, "conductance", "must not be negative")
        for name in ("exponent_mean", "exponent_std"):
            values = getattr(self, name)
            self.require(
                len(values) == len(self.conductance),
                name,
                f"needs {len(self.conductance)} values, got {len(values)}",
            )
            self.require(min(values) >= 0, name, "must not be negative")

    @property
    def _programming_over_full_scale(self) -> tuple[float, ...]:
        return tuple(c / 25.0 for c in self.programming)

    def _exponent(self, r: Tensor) -> tuple[Tensor, Tensor]:
        points = torch.tensor(self.conductance, dtype=r.dtype, device=r.device)
        g = (r * self.g_max).clamp(points[0], points[-1]).contiguous()
        right = torch.searchsorted(points, g).clamp(1, len(points) - 1)
        share = (g - points[right - 1]) / (points[right] - points[right - 1])

        def at(values: tuple[float, ...]) -> Tensor:
            table = torch.tensor(values, dtype=r.dtype, device=r.device)
            return torch.lerp(table[right - 1], table[right], share)

        return at(self.exponent_mean), at(self.exponent_std)

    def _read_noise(self, r: Tensor) -> Tensor:
        return pcm_read_noise(r)
