"""Cells that hold one of a few values and nothing between."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from aimc.cells.pulsed import BMAX, BMIN, PulsedCell, check_states, inverse_span
from aimc.random import Key, uniform

_MOST = 1 << 16
"""Levels; float32 tells few more apart, and a cell of so many is a continuous one."""


class Ladder(PulsedCell):
    """A cell with a finite number of levels between its bounds; a pulse moves it to the next one, or not at all.

    The levels of a device are ``bmin + (bmax - bmin) s``, with the same s for every device. A pulse that finds it at
    level k moves it one level with probability ``min(gain P(k), 1)``, gain being the device's ``up`` or ``down`` over
    its mean without ``up_down``. By default P mirrors soft bounds: ``P = clip(2 d, floor, 1)``, d the distance from the
    level to the bound it moves to as a share of the range. So in the half next to that bound the mean step is that of
    soft bounds whose step in the middle is one level, and in the far half it stays one level, because no pulse moves
    further.

    What is written (``snap``) goes to the nearest level. Decay and diffusion end at one of the two levels around the
    value, at random with the value as the mean, so that a decay of less than half a level per mini-batch still acts.

    Source: none; a model for cells with few stable states, for comparison with the continuous ones that are said to
    have as many states.

    Fields (see :class:`aimc.cells.PulsedCell` for the rest; ``dw_min`` is the mean level distance and ``dw_min_std``
    is 0, neither can be set):
        levels: how many levels, equally spaced; or their positions s, increasing from 0 (at ``bmin``) to 1.
        switch_up: probability of the move from each level but the last to the next; empty for the default above.
        switch_down: probability of the move from each level but the first to the one below; likewise.
        floor: least probability of the default, so that the ends of a long ladder are reached.

    Example:
        >>> cell = Ladder(levels=5, w_max=1.0, w_min=-1.0, dw_min_dtod=0.0, up_down_dtod=0.0, w_max_dtod=0.0,
        ...               w_min_dtod=0.0)
        >>> p = cell.draw((1, 1), Key(0))
        >>> cell.snap(torch.tensor([[-2.0, -0.3, 0.1, 0.6]]), p)
        tensor([[-1.0000, -0.5000,  0.0000,  0.5000]])
        >>> float(cell.step(torch.tensor([[0.0]]), p, torch.tensor(True), torch.tensor(0.0)))  # certain in the middle
        0.5
    """

    levels: int | tuple[float, ...] = 4
    switch_up: tuple[float, ...] = ()
    switch_down: tuple[float, ...] = ()
    floor: float = 0.05
    dw_min: ClassVar[float]  # type: ignore[misc]  (no field here: it follows from the levels)
    dw_min_std: ClassVar[float] = 0.0  # type: ignore[misc]  (no field here: a step has no size of its own)

    KIND: ClassVar[tuple[int, ...]] = (6, 0)
    PARAMETERS: ClassVar[tuple[str, ...]] = ("up", "down", "bmax", "bmin", "scale")
    NOMINAL = 10.0  # moves wherever it can; whether it did is read back

    def validate(self):
        if isinstance(self.levels, int):
            self.require(2 <= self.levels <= _MOST, "levels", f"must be 2 to {_MOST}, got {self.levels}")
        else:
            s = self.levels
            rising = len(s) >= 2 and s[0] == 0 and s[-1] == 1 and all(a < b for a, b in zip(s, s[1:]))
            self.require(rising, "levels", "must increase from 0 to 1")
        self.require(0 <= self.floor <= 1, "floor", "is a probability, between 0 and 1")
        for name in ("switch_up", "switch_down"):
            given = getattr(self, name)
            wanted = len(self.positions) - 1
            self.require(len(given) in (0, wanted), name, f"needs {wanted} probabilities, got {len(given)}")
            self.require(all(0 <= p <= 1 for p in given), name, "are probabilities, between 0 and 1")
        super().validate()

    @classmethod
    def with_states(cls, states: float, **fields) -> Self:
        """The ladder of ``states`` levels.

        Example:
            >>> Ladder.with_states(8).states
            8.0
        """
        check_states(states)
        return cls(levels=int(states) if states == int(states) else states, **fields)  # type: ignore[arg-type]

    @property
    def positions(self) -> tuple[float, ...]:
        """The levels as shares of the range, from 0 at the lower bound to 1 at the upper one."""
        if isinstance(self.levels, int):
            return tuple(k / (self.levels - 1) for k in range(self.levels))
        return self.levels

    @property
    def dw_min(self) -> float:  # type: ignore[no-redef]
        return (self.w_max - self.w_min) / (len(self.positions) - 1)

    @property
    def granularity(self) -> float:
        """Mean distance of two levels."""
        return self.dw_min

    @property
    def states(self) -> float:
        """Number of levels."""
        return float(len(self.positions))

    @property
    def noisy(self) -> bool:
        """Always: a pulse moves the device or not."""
        return True

    def switching(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Probabilities of a device with gain 1: up from each level but the last, down from each but the first.

        Example:
            >>> Ladder(levels=5).switching()
            ((1.0, 1.0, 1.0, 0.5), (0.5, 1.0, 1.0, 1.0))
        """
        s = self.positions
        up = self.switch_up or tuple(min(max(2 * (1 - a), self.floor), 1.0) for a in s[:-1])
        down = self.switch_down or tuple(min(max(2 * a, self.floor), 1.0) for a in s[1:])
        return up, down

    def _columns(self, shape, key, device):
        up, down, bmax, bmin = super()._columns(shape, key, device)
        return [up, down, bmax, bmin, inverse_span(bmax, bmin)]

    def constants(self) -> Tensor:
        """0, the number of levels, their positions, the middles between them, and the probabilities over dw_min."""
        s, (up, down) = self.positions, self.switching()
        middles = [(a + b) / 2 for a, b in zip(s, s[1:])]
        chances = [p / self.dw_min for p in up + down]
        return torch.tensor([0.0, len(s), *s, *middles, *chances], dtype=torch.float32, device="cpu")

    def change(self, w: Tensor, parameters: Tensor, up: Tensor, noise: Tensor) -> Tensor:
        moved = self.step(w, parameters, up, noise)
        return torch.where(up, moved - w, w - moved)

    def step(self, w: Tensor, parameters: Tensor, up: Tensor, noise: Tensor) -> Tensor:
        p_up, p_down, _, bmin, scale = parameters.unbind(-1)
        s, middles, chance_up, chance_down = self._tables(w.device)
        n = len(s)
        level = torch.bucketize(((w - bmin) * scale).contiguous(), middles)
        chance = torch.where(
            up, p_up * chance_up[level.clamp_max(n - 2)], p_down * chance_down[level.clamp_min(1) - 1]
        )
        chance = torch.where(torch.where(up, level == n - 1, level == 0), 0.0, chance)
        tail = (0.5 * torch.special.erfc(noise.double() * _HALF_ROOT)).float()
        moves = (chance > 0) & (tail <= chance)
        target = (level + torch.where(up, 1, -1)).clamp(0, n - 1)
        return super().snap(torch.where(moves, self._value(s[target], parameters), w), parameters)

    def mean_change(self, w: Tensor, parameters: Tensor, up: Tensor) -> Tensor:
        """Mean size of a step; between levels, where no device is, on the line between its values at the levels."""
        p_up, p_down, bmax, bmin, scale = parameters.unbind(-1)
        s, _, chance_up, chance_down = (table.to(w.dtype) for table in self._tables(w.device))
        gap, none = s.diff(), torch.zeros(1, dtype=w.dtype, device=w.device)
        chance_up, chance_down = torch.cat([chance_up, none]), torch.cat([none, chance_down])
        gap_up, gap_down = torch.cat([gap, none]), torch.cat([none, gap])
        at = ((w - bmin) * scale).clamp(0.0, 1.0)
        left = torch.bucketize(at.contiguous(), s[1:-1].contiguous(), right=True)
        q = (at - s[left]) / gap[left]
        ends = []
        for k in (left, left + 1):
            chance = torch.where(up, p_up * chance_up[k], p_down * chance_down[k]).clamp_max(1.0)
            ends.append(chance * torch.where(up, gap_up[k], gap_down[k]))
        return (bmax - bmin) * ((1 - q) * ends[0] + q * ends[1])

    def snap(self, w: Tensor, parameters: Tensor) -> Tensor:
        """The nearest level of each device."""
        s, middles, _, _ = self._tables(w.device)
        at = (w - parameters[..., BMIN]) * parameters[..., 4]
        return super().snap(self._value(s[torch.bucketize(at.contiguous(), middles)], parameters), parameters)

    def _settle(self, w: Tensor, parameters: Tensor, key: Key) -> Tensor:
        s, _, _, _ = self._tables(w.device)
        at = ((w - parameters[..., BMIN]) * parameters[..., 4]).clamp(0.0, 1.0)
        left = torch.bucketize(at.contiguous(), s[1:-1].contiguous(), right=True)
        share = (at - s[left]) / (s[left + 1] - s[left])
        # A value that is a level up to rounding is that level.
        share = torch.where((share - share.round()).abs() < 1e-5, share.round(), share)
        above = uniform(key.fold("settle").at("decay"), tuple(w.shape), device=w.device) < share
        return super().snap(self._value(s[left + above.long()], parameters), parameters)

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n = len(self.positions)
        return self.constants().to(device)[2:].split([n, n - 1, n - 1, n - 1])  # type: ignore[return-value]

    @staticmethod
    def _value(s: Tensor, parameters: Tensor) -> Tensor:
        bmax, bmin = parameters[..., BMAX], parameters[..., BMIN]
        return bmin + (bmax - bmin) * s


_HALF_ROOT = math.sqrt(0.5)
