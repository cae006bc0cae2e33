"""Cells whose step is a straight line over the weight, one line for each direction."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from aimc.cells.pulsed import PulsedCell, off_zero, xi


class LinearStep(PulsedCell):
    """Steps ``up (1 - gamma_up w/w_max)`` and ``down (1 - gamma_down w/w_min)``.

    Source: M. J. Rasch et al., AICAS 2021, arXiv:2104.02184 (``LinearStepDevice``), with its defaults. With both gammas
    at 1 the step vanishes at the bound it moves to (see :class:`aimc.cells.SoftBounds`), with 0 it is constant.

    Fields (see :class:`aimc.cells.PulsedCell` for the rest):
        gamma_up, gamma_down: share of the step at weight 0 that is lost at the mean bound.
        gamma_up_dtod, gamma_down_dtod: their spread, absolute.
        mult_noise: whether the noise of a pulse scales with its step; otherwise with the step at weight 0.
        mean_bound_reference: whether a step shrinks towards the mean bound; otherwise towards the device's own.
        allow_increasing: whether a step may grow towards the bound, as a spread of gamma around 0 would have it;
            otherwise the absolute value of gamma counts.

    Example:
        >>> from aimc.random import Key
        >>> cell = LinearStep(gamma_up=0.5, gamma_up_dtod=0.0, gamma_down_dtod=0.0, dw_min=0.1, dw_min_dtod=0.0,
        ...                   up_down_dtod=0.0, w_max=1.0, w_min=-1.0, w_max_dtod=0.0, w_min_dtod=0.0)
        >>> p = cell.draw((1, 1), Key(0))
        >>> round(float(cell.step(torch.tensor([[0.4]]), p, torch.tensor(True), torch.tensor(0.0))), 6)
        0.48
    """

    gamma_up: float = 0.0
    gamma_down: float = 0.0
    gamma_up_dtod: float = 0.05
    gamma_down_dtod: float = 0.05
    mult_noise: bool = True
    mean_bound_reference: bool = True
    allow_increasing: bool = False

    KIND: ClassVar[int] = 1
    PARAMETERS: ClassVar[tuple[str, ...]] = ("up", "down", "bmax", "bmin", "slope_up", "slope_down")

    def validate(self):
        super().validate()
        for bound in ("w_max", "w_min"):
            self.require(
                getattr(self, bound) != 0 or not self.mean_bound_reference,
                bound,
                "is 0 and no reference for a slope",
            )

    def _columns(self, shape, key, device):
        up, down, bmax, bmin = super()._columns(shape, key, device)
        gamma_up = self.gamma_up + self.gamma_up_dtod * xi(6, shape, key, device)
        gamma_down = self.gamma_down + self.gamma_down_dtod * xi(7, shape, key, device)
        if not self.allow_increasing:
            gamma_up, gamma_down = gamma_up.abs(), gamma_down.abs()
        own = not self.mean_bound_reference
        top, bottom = (off_zero(bmax), -off_zero(-bmin)) if own else (self.w_max, self.w_min)
        # A stuck device has up = down = 0 and may sit at a bound of 0.
        slope_up = torch.where(up == 0, up, -gamma_up * up / top)
        slope_down = torch.where(down == 0, down, -gamma_down * down / bottom)
        return [up, down, bmax, bmin, slope_up, slope_down]

    def constants(self) -> Tensor:
        return torch.tensor([self.dw_min_std, float(not self.mult_noise)], dtype=torch.float32, device="cpu")

    def change(self, w: Tensor, parameters: Tensor, up: Tensor, noise: Tensor) -> Tensor:
        return linear_change(w, parameters, up, noise, self.constants())

    def symmetry_point(self, parameters: Tensor) -> Tensor:
        """Where the two lines cross, if that is between the bounds."""
        return linear_symmetry_point(parameters)


def linear_change(w: Tensor, parameters: Tensor, up: Tensor, noise: Tensor, constants: Tensor) -> Tensor:
    """A step of the linear family, in the operations and the order of the compiled body."""
    p_up, p_down, _, _, slope_up, slope_down = parameters.unbind(-1)
    std, additive = float(constants[0]), bool(constants[1])
    slope, size = torch.where(up, slope_up, slope_down), torch.where(up, p_up, p_down)
    z = 1 + noise * std
    return slope * w + size * z if additive else (slope * w + size) * z


def linear_symmetry_point(parameters: Tensor) -> Tensor:
    """The crossing of the lines ``up + slope_up w`` and ``down + slope_down w``, NaN outside the bounds.

    Example:
        >>> p = torch.tensor([0.2, 0.1, 1.0, -1.0, -0.2, 0.1])
        >>> round(float(linear_symmetry_point(p)), 6)
        0.333333
    """
    up, down, bmax, bmin, slope_up, slope_down = parameters.unbind(-1)[:6]
    crossing = (up - down) / (slope_down - slope_up)
    return torch.where((crossing >= bmin) & (crossing <= bmax), crossing, torch.nan)
