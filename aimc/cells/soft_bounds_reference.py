"""Soft bounds, read as the difference to a reference device."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from aimc.cells.linear_step import linear_symmetry_point
from aimc.cells.pulsed import PulsedCell, off_zero, xi


class SoftBoundsReference(PulsedCell):
    """A soft-bounds device ``v`` with a constant reference: ``w = v - reference``.

    Steps ``up (1 - v/bmax + dw_min_std N(0,1))`` and ``down (1 - v/bmin + ...)``, where ``v`` is clipped to
    ``[bmin, bmax]``. The columns are already those of ``w``: its bounds are ``bmax - reference`` and ``bmin -
    reference``, ``up`` and ``down`` its steps at 0.

    Source: N. Gong et al., IEDM 2022 (the array measurements it was made for); IBM's ``SoftBoundsReferenceDevice``.
    Unlike there, ``rest`` is a value of ``w`` whether or not the symmetry point is subtracted.

    Fields (see :class:`aimc.cells.PulsedCell` for the rest):
        mult_noise: whether the noise of a pulse scales with its step; otherwise with the step at ``v = 0``.
        slope_up_dtod, slope_down_dtod: further spread of the slopes: each bound is divided by ``abs(1 + dtod N(0,1))``.
        subtract_symmetry_point: whether the device's symmetry point is part of the reference, so that ``w`` is
            symmetric at 0.
        reference_mean, reference_std: mean and spread of the reference, or of the error of that subtraction.

    Example:
        >>> from aimc.random import Key
        >>> cell = SoftBoundsReference(subtract_symmetry_point=True, dw_min=0.1, up_down_dtod=0.3)
        >>> bool((cell.symmetry_point(cell.draw((5, 5), Key(0))).abs() < 1e-6).all())
        True
    """

    mult_noise: bool = False
    slope_up_dtod: float = 0.0
    slope_down_dtod: float = 0.0
    subtract_symmetry_point: bool = False
    reference_mean: float = 0.0
    reference_std: float = 0.0

    KIND: ClassVar[tuple[int, ...]] = (2,)
    PARAMETERS: ClassVar[tuple[str, ...]] = (
        "up", "down", "bmax", "bmin", "slope_up", "slope_down", "noise_up", "noise_down",
    )  # fmt: skip

    def _columns(self, shape, key, device):
        up, down, bmax, bmin = super()._columns(shape, key, device)
        moves = (up > 0) | (down > 0)  # the others are stuck and may sit at a bound of 0
        bmax = torch.where(moves, bmax / (1 + self.slope_up_dtod * xi(6, shape, key, device)).abs(), bmax)
        bmin = torch.where(moves, bmin / (1 + self.slope_down_dtod * xi(7, shape, key, device)).abs(), bmin)
        slope_up = torch.where(moves, -up / off_zero(bmax), up)
        slope_down = torch.where(moves, -down / -off_zero(-bmin), down)
        reference = self.reference_mean + self.reference_std * xi(8, shape, key, device)
        if self.subtract_symmetry_point:
            reference = reference + torch.where(moves, (up - down) / (slope_down - slope_up), 0.0)
        return [
            up + slope_up * reference, down + slope_down * reference, bmax - reference, bmin - reference,
            slope_up, slope_down, up, down,
        ]  # fmt: skip

    def constants(self) -> Tensor:
        return torch.tensor([self.dw_min_std, float(not self.mult_noise)], dtype=torch.float32, device="cpu")

    def change(self, w: Tensor, parameters: Tensor, up: Tensor, noise: Tensor) -> Tensor:
        p_up, p_down, _, _, slope_up, slope_down, noise_up, noise_down = parameters.unbind(-1)
        constants = self.constants()
        std, additive = float(constants[0]), bool(constants[1])
        mean = torch.where(up, slope_up, slope_down) * w + torch.where(up, p_up, p_down)
        z = noise * std
        return mean + torch.where(up, noise_up, noise_down) * z if additive else mean * (1 + z)

    def symmetry_point(self, parameters: Tensor) -> Tensor:
        """That of the soft bounds, less the reference."""
        return linear_symmetry_point(parameters)
