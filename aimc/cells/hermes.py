"""The 64-core HERMES phase-change-memory chip."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from aimc.cells.base import DriftingCell, polynomial

# Per devices in parallel: g_max (uS), programming error in powers of r = g/g_max (uS), t0 (s), and the clipped
# logarithm and polynomial of the exponent's spread and of the read noise, each with the r where they meet.
_FITS: dict[int, dict[str, Any]] = {
    1: {
        "g_max": 10.35,
        "programming": (0.15781817, 2.32443916, -2.16310839, 0.68841818),
        "t0": 200.0,
        "spread": ((-0.0120, -0.0023, 0.0124, 0.04), 0.3039, (0.0104, 0.0116, -0.0165)),
        "read": ((-0.0078, 0.0038, 0.0179, 0.04), 0.1591, (0.0088, 0.0768, -0.1352, 0.0664)),
    },
    2: {
        "g_max": 20.7,
        "programming": (0.16603222, 4.71806468, -8.48101252, 4.68961419),
        "t0": 300.0,
        "spread": ((-0.0117, -0.0057, 0.0091, 0.04), 0.3055, (0.0073, 0.0093, -0.0118)),
        "read": ((-0.0117, -0.0069, 0.015, 0.04), 0.16, (0.0123, 0.0211, -0.0280, 0.0069)),
    },
}
_EXPONENT = ((-0.0387, -0.0182, 0.072, 0.13), 0.0945, (0.0736, -0.0126, -0.0436))


class Hermes(DriftingCell):
    """Phase-change memory of the HERMES chip, with one or two devices in parallel for each polarity.

    Source: M. Le Gallo et al., *A 64-core mixed-signal in-memory compute chip based on phase-change memory for deep
    neural network inference*, Nature Electronics 6, 680 (2023); fits as published with IBM's simulator. Conductances
    in uS (of the parallel devices together), times in s.

    Fields:
        parallel: 1 or 2 devices; picks the fits, full scale (10.35 or 20.7 uS) and t0 (200 or 300 s).
        g_max, t0: None takes those of the fit; the fits are functions of g/g_max.

    Example:
        >>> import torch
        >>> cell = Hermes(parallel=2)
        >>> cell.g_max, round(float(cell.programming_std(torch.tensor(20.7))), 4)
        (20.7, 1.0927)
    """

    parallel: Literal[1, 2] = 1
    g_max: float | None = None  # type: ignore[assignment]  (a number for every reader, see __getattribute__)
    t0: float | None = None  # type: ignore[assignment]
    t_read: float = 512e-9

    def __getattribute__(self, name: str):
        # The fields stay null, so that a copy with another number of devices gets that number's own values.
        value = super().__getattribute__(name)
        return _FITS.get(self.parallel, {}).get(name) if value is None and name in ("g_max", "t0") else value

    def to_dict(self):
        """As every configuration, with ``g_max`` and ``t0`` null unless they were given."""
        return super().to_dict() | {n: object.__getattribute__(self, n) for n in ("g_max", "t0")}

    def replace(self, **changes):
        """As every configuration; full scale and t0 follow ``parallel`` unless they were given."""
        given = {n: object.__getattribute__(self, n) for n in ("g_max", "t0")}
        return super().replace(**{**given, **changes})

    @property
    def _programming_over_full_scale(self) -> tuple[float, ...]:
        fit = _FITS[self.parallel]
        return tuple(c / fit["g_max"] for c in fit["programming"])

    def _exponent(self, r: Tensor) -> tuple[Tensor, Tensor]:
        return _two_piece(r, *_EXPONENT), _two_piece(r, *_FITS[self.parallel]["spread"])

    def _read_noise(self, r: Tensor) -> Tensor:
        return _two_piece(r, *_FITS[self.parallel]["read"])


def _two_piece(r: Tensor, logarithm: tuple[float, ...], meet: float, powers: tuple[float, ...]) -> Tensor:
    slope, offset, low, high = logarithm
    below = (slope * torch.log(r.clamp_min(1e-7)) + offset).clamp(low, high)
    return torch.where(r < meet, below, polynomial(r, powers))
