"""Cells whose step over the weight is a measured curve."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from aimc.cells.pulsed import PulsedCell, inverse_span


class PiecewiseStep(PulsedCell):
    """Steps ``up f_up(w)`` and ``down f_down(w)``, each f linear between values given over ``[bmin, bmax]``.

    Source: IBM's ``PiecewiseStepDevice``; defaults as there.

    Fields (see :class:`aimc.cells.PulsedCell` for the rest):
        piecewise_up, piecewise_down: values of the two curves at points equally spaced from ``bmin`` to ``bmax``, the
            same number of each; one value is a constant step. Every device has the same curves over its own bounds.

    Example:
        >>> from aimc.random import Key
        >>> cell = PiecewiseStep(piecewise_up=(2, 1, 0), piecewise_down=(0, 1, 2), dw_min=0.1, dw_min_dtod=0.0,
        ...                      up_down_dtod=0.0, w_max=1.0, w_min=-1.0, w_max_dtod=0.0, w_min_dtod=0.0)
        >>> p = cell.draw((1, 1), Key(0))
        >>> round(float(cell.step(torch.tensor([[0.5]]), p, torch.tensor(True), torch.tensor(0.0))), 6)
        0.55
    """

    piecewise_up: tuple[float, ...] = (1.0,)
    piecewise_down: tuple[float, ...] = (1.0,)

    KIND: ClassVar[tuple[int, ...]] = (5, 0)
    PARAMETERS: ClassVar[tuple[str, ...]] = ("up", "down", "bmax", "bmin", "scale")

    def validate(self):
        super().validate()
        for name in ("piecewise_up", "piecewise_down"):
            values = getattr(self, name)
            self.require(len(values) > 0, name, "needs at least one value")
            self.require(min(values) >= 0, name, f"must not be negative, got {min(values)}")
        same = len(self.piecewise_up) == len(self.piecewise_down)
        self.require(same, "piecewise_down", "must have as many values as piecewise_up")
        self.require(self.granularity > 0, "piecewise_up", "no step is left at weight 0")

    @property
    def granularity(self) -> float:
        """Mean of the up and the down step at weight 0 of the mean device."""
        up, down = self._nodes()
        at = min(max(-self.w_min / (self.w_max - self.w_min), 0.0), 1.0) * (len(up) - 1)
        i = min(int(at), len(up) - 2)
        return self.dw_min * sum((1 - at + i) * f[i] + (at - i) * f[i + 1] for f in (up, down)) / 2

    def _nodes(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The curves with at least two values."""
        repeat = 2 if len(self.piecewise_up) == 1 else 1
        return self.piecewise_up * repeat, self.piecewise_down * repeat

    def _columns(self, shape, key, device):
        up, down, bmax, bmin = super()._columns(shape, key, device)
        return [up, down, bmax, bmin, (len(self._nodes()[0]) - 1) * inverse_span(bmax, bmin)]

    def constants(self) -> Tensor:
        up, down = self._nodes()
        return torch.tensor([self.dw_min_std, len(up), *up, *down], dtype=torch.float32, device="cpu")

    def change(self, w: Tensor, parameters: Tensor, up: Tensor, noise: Tensor) -> Tensor:
        p_up, p_down, _, bmin, scale = parameters.unbind(-1)
        constants = self.constants().to(w.device)
        n = int(constants[1])
        at = ((w - bmin) * scale).clamp(0.0, float(n - 1))
        i = at.long().clamp_max(n - 2)
        q = at - i
        first = i + torch.where(up, 2, 2 + n)
        factor = (1 - q) * constants[first] + q * constants[first + 1]
        return torch.where(up, p_up, p_down) * factor * (1 + noise * float(constants[0]))
