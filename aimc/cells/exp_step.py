"""Cells whose step falls exponentially towards the bounds."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from aimc.cells.pulsed import PulsedCell, inverse_span


class ExpStep(PulsedCell):
    """Steps ``up max(1 - A_up exp(gamma_up Z), 0)`` and ``down max(1 - A_down exp(-gamma_down Z), 0)``.

    ``Z = 2 a w / (bmax - bmin) + b``. The noise of a pulse has the standard deviation ``dw_min_std (step +
    dw_min_std_add + dw_min_std_slope abs(w))``.

    Source: M. J. Rasch et al., AICAS 2021, arXiv:2104.02184 (``ExpStepDevice``), with its defaults, a fit to CMOS-like
    cells.

    Fields (see :class:`aimc.cells.PulsedCell` for the rest):
        A_up, A_down, gamma_up, gamma_down, a, b: the shape, the same for every device.
        dw_min_std_add, dw_min_std_slope: noise that does not scale with the step.

    Example:
        >>> from aimc.random import Key
        >>> cell = ExpStep(dw_min=0.1, dw_min_dtod=0.0, up_down_dtod=0.0, w_max=1.0, w_min=-1.0, w_max_dtod=0.0,
        ...                w_min_dtod=0.0)
        >>> p = cell.draw((1, 1), Key(0))
        >>> round(float(cell.step(torch.tensor([[0.5]]), p, torch.tensor(True), torch.tensor(0.0))), 6)
        0.592436
    """

    A_up: float = 0.00081
    A_down: float = 0.36833
    gamma_up: float = 12.44625
    gamma_down: float = 12.78785
    a: float = 0.244
    b: float = 0.2425
    dw_min_std_add: float = 0.0
    dw_min_std_slope: float = 0.0

    KIND: ClassVar[tuple[int, ...]] = (3, 0)
    PARAMETERS: ClassVar[tuple[str, ...]] = ("up", "down", "bmax", "bmin", "scale")

    def validate(self):
        super().validate()
        # Beyond, exp overflows in float32 arithmetic of the weights.
        reach = max(abs(self.gamma_up), abs(self.gamma_down)) * (2 * abs(self.a) + abs(self.b))
        self.require(reach < 80, "gamma_up", "the exponent gamma (2 a + b) is beyond 80")
        self.require(self.granularity > 0, "A_up", "no step is left at weight 0")
        self.require(self.dw_min_std_add >= 0, "dw_min_std_add", "must not be negative")
        self.require(self.dw_min_std_slope >= 0, "dw_min_std_slope", "must not be negative")

    @property
    def granularity(self) -> float:
        """Mean of the up and the down step at weight 0. (IBM's simulator takes the down step for both.)"""
        up = max(1 - self.A_up * math.exp(self.gamma_up * self.b), 0)
        down = max(1 - self.A_down * math.exp(-self.gamma_down * self.b), 0)
        return self.dw_min * (up + down) / 2

    def _columns(self, shape, key, device):
        up, down, bmax, bmin = super()._columns(shape, key, device)
        return [up, down, bmax, bmin, 2 * self.a * inverse_span(bmax, bmin)]

    def constants(self) -> Tensor:
        numbers = (self.dw_min_std, self.A_up, self.A_down, self.gamma_up, self.gamma_down, self.b,
                   self.dw_min_std_add, self.dw_min_std_slope)  # fmt: skip
        return torch.tensor(numbers, dtype=torch.float32, device="cpu")

    def change(self, w: Tensor, parameters: Tensor, up: Tensor, noise: Tensor) -> Tensor:
        p_up, p_down, _, _, scale = parameters.unbind(-1)
        std, a_up, a_down, gamma_up, gamma_down, b, add, slope = self.constants().tolist()
        z = (w * scale + b).double()
        exponent = torch.where(up, gamma_up * z, -gamma_down * z)
        factor = (1 - torch.where(up, a_up, a_down) * torch.exp(exponent)).clamp_min(0.0).to(w.dtype)
        size = torch.where(up, p_up, p_down) * factor
        return size + (size + add + slope * w.abs()) * (noise * std)
