"""Cells whose step is a power of the distance to the bound."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from aimc.cells.pulsed import PulsedCell, biases, inverse_span, xi


class PowStep(PulsedCell):
    """Steps ``up r^gamma_up`` and ``down (1 - r)^gamma_down``, ``r = (bmax - w) / (bmax - bmin)``.

    Source: S. Fusi and L. F. Abbott, Nat. Neurosci. 10, 485 (2007); S. Frascaroli et al., Sci. Rep. 8, 7178 (2018); in
    the form of IBM's ``PowStepDevice``, with its defaults. ``dw_min`` is the step at the far bound, not at weight 0.

    Fields (see :class:`aimc.cells.PulsedCell` for the rest):
        pow_gamma: mean exponent.
        pow_gamma_dtod: its relative spread.
        pow_up_down: mean difference of the exponents, relative to pow_gamma.
        pow_up_down_dtod: its spread.

    Example:
        >>> from aimc.random import Key
        >>> cell = PowStep(pow_gamma=2.0, pow_gamma_dtod=0.0, dw_min=0.1, dw_min_dtod=0.0, up_down_dtod=0.0, w_max=1.0,
        ...                w_min=-1.0, w_max_dtod=0.0, w_min_dtod=0.0)
        >>> p = cell.draw((1, 1), Key(0))
        >>> round(float(cell.step(torch.tensor([[0.5]]), p, torch.tensor(True), torch.tensor(0.0))), 6)
        0.50625
    """

    pow_gamma: float = 1.0
    pow_gamma_dtod: float = 0.1
    pow_up_down: float = 0.0
    pow_up_down_dtod: float = 0.0

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
        return [up, down, bmax, bmin, *gammas, inverse_span(bmax, bmin)]

    def change(self, w: Tensor, parameters: Tensor, up: Tensor, noise: Tensor) -> Tensor:
        return pow_change(w, parameters, up, noise, self.constants())


def pow_gammas(
    gamma: float, up_down: float, gamma_dtod: float, up_down_dtod: float,
    shape: tuple[int, int], key, device: torch.device | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Exponents up and down of the devices; draws 6 and 7."""
    gain, r = 1 + gamma_dtod * xi(6, shape, key, device), up_down_dtod * xi(7, shape, key, device)
    up_bias, down_bias = biases(up_down)
    return (gamma * (up_bias + gain + r)).abs(), (gamma * (down_bias + gain - r)).abs()


def pow_change(w: Tensor, parameters: Tensor, up: Tensor, noise: Tensor, constants: Tensor) -> Tensor:
    """A step of the power family, in the operations and the order of the compiled body."""
    p_up, p_down, bmax, bmin, gamma_up, gamma_down, scale = parameters.unbind(-1)
    distance = (torch.where(up, bmax - w, w - bmin) * scale).clamp_min(0.0).double()
    factor = torch.pow(distance, torch.where(up, gamma_up, gamma_down).double()).to(w.dtype)
    return torch.where(up, p_up, p_down) * factor * (1 + noise * float(constants[0]))
