"""Power steps, read as the difference to a reference device."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from aimc.cells.pow_step import pow_change, pow_gammas
from aimc.cells.pulsed import PulsedCell, inverse_span, xi


class PowStepReference(PulsedCell):
    """A power-step device ``v`` (see :class:`aimc.cells.PowStep`) with a constant reference: ``w = v - reference``.

    The step depends on the distance to the bounds alone, so that the reference only shifts them: the columns hold
    ``bmax - reference`` and ``bmin - reference``.

    Source: IBM's ``PowStepReferenceDevice``. The symmetry point is found by bisection instead of a long train of up and
    down pulses, and ``rest`` is a value of ``w``.

    Fields (see :class:`aimc.cells.PulsedCell` and :class:`aimc.cells.PowStep` for the rest):
        subtract_symmetry_point: whether the device's symmetry point is part of the reference, so that ``w`` is
            symmetric at 0.
        reference_mean, reference_std: mean and spread of the reference, or of the error of that subtraction.

    Example:
        >>> from aimc.random import Key
        >>> cell = PowStepReference(subtract_symmetry_point=True, dw_min=0.1, up_down_dtod=0.3)
        >>> bool((cell.symmetry_point(cell.draw((5, 5), Key(0))).abs() < 1e-6).all())
        True
    """

    pow_gamma: float = 1.0
    pow_gamma_dtod: float = 0.1
    pow_up_down: float = 0.0
    pow_up_down_dtod: float = 0.0
    subtract_symmetry_point: bool = False
    reference_mean: float = 0.0
    reference_std: float = 0.0

    KIND: ClassVar[tuple[int, ...]] = (4, 0)
    PARAMETERS: ClassVar[tuple[str, ...]] = ("up", "down", "bmax", "bmin", "gamma_up", "gamma_down", "scale")

    def validate(self):
        super().validate()
        self.require(self.pow_gamma >= 0, "pow_gamma", f"must not be negative, got {self.pow_gamma}")
        self.require(self.pow_gamma <= 100, "pow_gamma", f"must be at most 100, got {self.pow_gamma}")

    @property
    def granularity(self) -> float:
        """The step in the middle of the range."""
        return self.dw_min * 0.5**self.pow_gamma

    def _columns(self, shape, key, device):
        up, down, bmax, bmin = super()._columns(shape, key, device)
        spread = (self.pow_gamma_dtod, self.pow_up_down_dtod)
        gammas = pow_gammas(self.pow_gamma, self.pow_up_down, *spread, shape, key, device)
        scale = inverse_span(bmax, bmin)
        reference = self.reference_mean + self.reference_std * xi(8, shape, key, device)
        if self.subtract_symmetry_point:
            symmetric = self.symmetry_point(torch.stack([up, down, bmax, bmin, *gammas, scale], -1))
            reference = reference + torch.nan_to_num(symmetric, nan=0.0)  # a stuck device has none
        return [up, down, bmax - reference, bmin - reference, *gammas, scale]

    def change(self, w: Tensor, parameters: Tensor, up: Tensor, noise: Tensor) -> Tensor:
        return pow_change(w, parameters, up, noise, self.constants())
