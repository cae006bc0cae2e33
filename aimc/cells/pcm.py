"""Phase-change memory, the published fit to a million devices."""

from __future__ import annotations

import torch
from torch import Tensor

from aimc.cells.base import DriftingCell


class PCM(DriftingCell):
    """Mushroom-type phase-change memory at 90 nm.

    Sources: S. R. Nandakumar et al., *Phase-change memory models for deep learning training and inference*, ICECS
    2019; V. Joshi et al., Nature Communications 11, 2473 (2020). Conductances in uS, times in s.

    With r = g/g_max:

    - programming error ``(g_max/25) * (0.26348 + 1.9650 r - 1.1731 r^2)`` uS;
    - drift exponent: mean ``clip(-0.0155 ln r + 0.0244, 0.049, 0.1)``, spread ``clip(-0.0125 ln r - 0.0059, 0.008,
      0.045)``, at the target;
    - read noise: ``min(0.0088 / r^0.65, 0.2) * sqrt(ln((t + t0 + t_read) / (2 t_read)))`` of the drifted conductance,
      r at the target.

    Fields:
        g_max: full-scale conductance, uS.
        programming: coefficients of the programming error, uS at a full scale of 25 uS (raw values).
        t0, t_read and the scales: as in the base.

    Example:
        >>> import torch
        >>> cell = PCM()
        >>> round(float(cell.programming_std(torch.tensor(12.5))), 5)
        0.95271
        >>> [round(float(v), 4) for v in cell.drift_exponent(torch.tensor(5.0))]
        [0.0493, 0.0142]
        >>> round(float(cell.read_noise_std(torch.tensor(25.0), 3600.0)), 5)
        0.04193
    """

    programming: tuple[float, ...] = (0.26348, 1.9650, -1.1731)

    def validate(self):
        super().validate()
        self.require(0 < len(self.programming) <= 4, "programming", "takes one to four coefficients")

    @property
    def _programming_over_full_scale(self) -> tuple[float, ...]:
        return tuple(c / 25.0 for c in self.programming)

    def _exponent(self, r: Tensor) -> tuple[Tensor, Tensor]:
        return pcm_exponent(r)

    def _read_noise(self, r: Tensor) -> Tensor:
        return pcm_read_noise(r)


def pcm_exponent(r: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of the exponent at r = g/g_max (see :class:`PCM`)."""
    log_r = torch.log(r.clamp_min(1e-7))
    return (-0.0155 * log_r + 0.0244).clamp(0.049, 0.1), (-0.0125 * log_r - 0.0059).clamp(0.008, 0.045)


def pcm_read_noise(r: Tensor) -> Tensor:
    """Amplitude of the read noise at r = g_target/g_max (see :class:`PCM`)."""
    return (0.0088 / (r**0.65).clamp_min(1e-3)).clamp_max(0.2)
