"""Cells whose step does not depend on the weight."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from aimc.cells.pulsed import PulsedCell


class ConstantStep(PulsedCell):
    """Steps ``up`` and ``down`` everywhere between the bounds.

    Source: T. Gokmen and Y. Vlasov, Front. Neurosci. 10, 333 (2016); defaults as in IBM's simulator.

    Fields: those of :class:`aimc.cells.PulsedCell`.

    Example:
        >>> from aimc.random import Key
        >>> cell = ConstantStep.with_states(10, w_max=1.0, w_min=-1.0, dw_min_dtod=0.0, up_down_dtod=0.0)
        >>> p = cell.draw((1, 1), Key(0))
        >>> round(float(cell.step(torch.tensor([[0.5]]), p, torch.tensor(True), torch.tensor(0.0))), 6)
        0.7
    """

    KIND: ClassVar[int] = 0

    def change(self, w: Tensor, parameters: Tensor, up: Tensor, noise: Tensor) -> Tensor:
        p_up, p_down, _, _ = parameters.unbind(-1)
        std = float(self.constants()[0])
        return torch.where(up, p_up, p_down) * (1 + noise * std)

    def symmetry_point(self, parameters: Tensor) -> Tensor:
        """Every weight where the two steps are equal, and then the one nearest to 0; otherwise none."""
        p_up, p_down, bmax, bmin = parameters.unbind(-1)
        anywhere = (p_up == p_down) & (p_up > 0)
        return torch.where(anywhere, torch.zeros_like(bmax).clamp(bmin, bmax), torch.nan)
