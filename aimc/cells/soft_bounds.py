"""Cells whose step shrinks linearly to nothing at the bound it moves to."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from aimc.arguments import checked
from aimc.cells.linear_step import linear_change, linear_symmetry_point
from aimc.cells.pulsed import PulsedCell, off_zero
from aimc.errors import AimcError


class SoftBounds(PulsedCell):
    """Steps ``up (1 - w/bmax)`` and ``down (1 - w/bmin)``, with each device's own bounds.

    Source: T. Gokmen and W. Haensch, Front. Neurosci. 14, 103 (2020); defaults as in IBM's simulator.

    Fields (see :class:`aimc.cells.PulsedCell` for the rest):
        mult_noise: whether the noise of a pulse scales with its step; otherwise with the step at weight 0.

    Example:
        >>> from aimc.random import Key
        >>> cell = SoftBounds.with_states(10, w_max=1.0, w_min=-1.0, dw_min_dtod=0.0, up_down_dtod=0.0, w_max_dtod=0.0,
        ...                               w_min_dtod=0.0)
        >>> p = cell.draw((1, 1), Key(0))
        >>> round(float(cell.step(torch.tensor([[0.5]]), p, torch.tensor(True), torch.tensor(0.0))), 6)
        0.6
    """

    mult_noise: bool = True

    KIND: ClassVar[int] = 1
    PARAMETERS: ClassVar[tuple[str, ...]] = ("up", "down", "bmax", "bmin", "slope_up", "slope_down")

    def _columns(self, shape, key, device):
        up, down, bmax, bmin = super()._columns(shape, key, device)
        # A stuck device has up = down = 0 and may sit at a bound of 0.
        slope_up = torch.where(up == 0, up, -up / off_zero(bmax))
        slope_down = torch.where(down == 0, down, -down / -off_zero(-bmin))
        return [up, down, bmax, bmin, slope_up, slope_down]

    def constants(self) -> Tensor:
        return torch.tensor([self.dw_min_std, float(not self.mult_noise)], dtype=torch.float32, device="cpu")

    def change(self, w: Tensor, parameters: Tensor, up: Tensor, noise: Tensor) -> Tensor:
        return linear_change(w, parameters, up, noise, self.constants())

    def symmetry_point(self, parameters: Tensor) -> Tensor:
        """``(up - down) / (up/bmax - down/bmin)``: where the two lines cross."""
        return linear_symmetry_point(parameters)


@checked
def reram(states: float = 4, **fields) -> SoftBounds:
    """Resistive memory with few states: soft bounds at ±1, as in the papers on residual learning.

    Args:
        states: nominal number of states between the bounds.
        fields: other fields of :class:`SoftBounds`.

    Raises:
        AimcError: ``dw_min``, which follows from the states.

    Example:
        >>> reram(states=10).dw_min
        0.2
    """
    return SoftBounds.with_states(states, **{"w_max": 1.0, "w_min": -1.0, **fields})


@checked
def soft_bounds_pmax(
    p_max: int = 1000, alpha: float = 0.0005, range_min: float = -1.0, range_max: float = 1.0, **fields
) -> SoftBounds:
    """Soft bounds from a measured run between two values.

    ``p_max`` up pulses lead from ``range_min`` along ``w(p) = range_min + B (1 - exp(-alpha p))`` to ``range_max``, as
    many down pulses back along the mirror image; ``B = (range_max - range_min) / (1 - exp(-alpha p_max))`` (M. J. Rasch
    et al., arXiv:2104.02184, ``SoftBoundsPmaxDevice``). The curves end at ``w_max = range_min + B`` and
    ``w_min = range_max - B``, and a pulse goes the share ``1 - exp(-alpha)`` of the way there, so that the noise-free
    cell meets both ends exactly. (IBM's own conversion puts ``w_min`` at ``range_min`` and its steps are larger than
    those of the formula.)

    Args:
        p_max: pulses between the two values.
        alpha: curvature per pulse, > 0.
        range_min, range_max: the two values, on either side of 0.
        fields: other fields of :class:`SoftBounds`.

    Raises:
        AimcError: an argument that is no number or out of its range; a bound, which follows from the arguments.

    Example:
        >>> cell = soft_bounds_pmax(10, 0.1)
        >>> round(cell.w_max, 4), round(cell.dw_min, 4)
        (2.164, 0.2059)
    """
    ranges = {
        "p_max": (p_max, 1, 1e9), "alpha": (alpha, 1e-9, 50), "range_min": (range_min, -1e6, 0),
        "range_max": (range_max, 0, 1e6),
    }  # fmt: skip
    for name, (value, low, high) in ranges.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise AimcError(f"must be a number from {low:g} to {high:g}, got {value!r}", field=name)
    if range_min == range_max:
        raise AimcError("must exceed range_min", field="range_max")
    for name in ("w_max", "w_min"):
        if name in fields:
            raise AimcError("follows from range_min, range_max, alpha and p_max; give those", field=name)
    share = -math.expm1(-alpha)
    reach = (range_max - range_min) / -math.expm1(-alpha * p_max)
    w_max, w_min = range_min + reach, range_max - reach
    up, down = share * w_max, -share * w_min
    size = max(up, down)
    fields = {"dw_min": size, "up_down": 1 - down / up if up >= down else up / down - 1, **fields}
    return SoftBounds(w_max=w_max, w_min=w_min, **fields)
