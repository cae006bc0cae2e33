"""The contract of an inference cell: data plus pure functions of conductance, time and key."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from aimc.config import Config
from aimc.errors import AimcError
from aimc.random import Key, normal, uniform

LOG_RANGE = 32.0
"""Read noise is defined up to ``t0 * exp(32)`` seconds, millions of years."""
_DEPTH = 16


class Faults(Config):
    """Share of devices that are stuck for good; a stuck device is neither programmed nor drifts.

    Fields:
        reset: share of devices stuck at ``g_min``.
        maximum: share stuck at ``g_max``.
        random: share stuck at a value uniform between the two.
    """

    reset: float = 0.0
    maximum: float = 0.0
    random: float = 0.0

    def validate(self):
        for name in self.field_names():
            self.require(0 <= getattr(self, name) <= 1, name, "is a probability, between 0 and 1")
        self.require(
            self.total <= 1 + 1e-12, "reset", "the three shares of stuck devices add up to more than 1"
        )

    @property
    def total(self) -> float:
        return self.reset + self.maximum + self.random


@dataclasses.dataclass(frozen=True)
class ProgrammedCells:
    """Devices after programming: what is fixed for the life of the chip.

    Attributes:
        target: conductance that was asked for, uS, any shape.
        conductance: conductance at the end of programming, uS, same shape.
        exponent: drift exponent of each device, same shape.
        stuck: True where the device is stuck, or None where faults are off.
    """

    target: Tensor
    conductance: Tensor
    exponent: Tensor
    stuck: Tensor | None = None


class Cell(Config):
    """Base of the inference cells. Conductances in uS, times in seconds after the end of programming.

    Every draw is a pure function of the key and the position of the device in the tensor, so the same key is the
    same chip at any time, in any order of questions.

    Fields:
        g_max: full scale, uS: the conductance that the largest weight of a column takes.
        g_min: the lowest conductance that is programmed, uS.
        faults: devices that are stuck for good.
    """

    g_max: float = 25.0
    g_min: float = 0.0
    faults: Faults = Faults()

    def validate(self):
        self.require(self.g_min >= 0, "g_min", f"must not be negative, got {self.g_min}")
        self.require(
            self.g_max > self.g_min, "g_max", f"must exceed g_min, got {self.g_min} and {self.g_max}"
        )
        self.require(math.isfinite(self.g_max), "g_max", "must be finite")

    @property
    def drifts(self) -> bool:
        """Whether time changes this cell at all."""
        return True

    @property
    def devices(self) -> int:
        """Devices per weight: 2 for a pair (G+, G-), 1 for a signed conductance."""
        return 2

    @property
    @abc.abstractmethod
    def programming_polynomial(self) -> tuple[float, ...]:
        """Programming error over full scale, in ascending powers of g/g_max."""

    def programming_std(self, g: Tensor) -> Tensor:
        """Standard deviation of the conductance after programming, uS, for a target ``g`` in uS."""
        return polynomial(g.abs() / self.g_max, self.programming_polynomial).clamp_min(0.0) * self.g_max

    @abc.abstractmethod
    def drift_exponent(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and device-to-device spread of the drift exponent for a target ``g`` in uS."""

    @abc.abstractmethod
    def read_noise_std(self, g_target: Tensor, t: float | Tensor) -> Tensor:
        """Read noise accumulated up to ``t`` seconds, relative to the drifted conductance, for a target in uS."""

    @abc.abstractmethod
    def log_age(self, t: float) -> float:
        """L in ``g(t) = g(0) * exp(-nu * L)``, for ``t`` seconds after programming."""

    @abc.abstractmethod
    def log_read(self, t: Any) -> Any:
        """The clock of the read noise: its accumulated variance is this times a function of the conductance."""

    def program(self, g_target: Tensor, key: Key) -> ProgrammedCells:
        """Write devices once: programming error, drift exponent and faults.

        Args:
            g_target: targets in uS, any shape, between ``g_min`` and ``g_max`` (signed for a signed cell).
            key: the chip's key for these devices.
        """
        shape, device = tuple(g_target.shape), g_target.device
        g = g_target + self.programming_std(g_target) * normal(key.at("programming"), shape, device=device)
        if self.devices == 2:
            g = g.clamp_min(0.0)
        mean, spread = self.drift_exponent(g_target)
        exponent = (mean + spread * normal(key.at("drift"), shape, device=device)).abs()
        stuck = None
        if self.faults.total > 0:
            draw = uniform(key.at("faults"), shape, device=device)
            level = uniform(key.at("faults", step=1), shape, device=device)
            stuck = draw < self.faults.total
            level = torch.where(draw < self.faults.reset + self.faults.maximum, torch.ones_like(level), level)
            level = torch.where(draw < self.faults.reset, torch.zeros_like(level), level)
            held = self.g_min + (self.g_max - self.g_min) * level
            if self.devices == 1:
                held = held * torch.where(g_target < 0, -1.0, 1.0)
            g = torch.where(stuck, held, g)
        return ProgrammedCells(g_target, g, exponent, stuck)

    def drift(self, cells: ProgrammedCells, t: float) -> Tensor:
        """Conductance at ``t`` seconds without read noise, uS."""
        g = cells.conductance * torch.exp(cells.exponent * -self.log_age(t))
        return g if cells.stuck is None else torch.where(cells.stuck, cells.conductance, g)

    def read(self, cells: ProgrammedCells, t: float, key: Key) -> Tensor:
        """Conductance at ``t`` seconds as a slow observer sees it: drift and accumulated read noise, uS.

        The noise of a device is one trajectory, Brownian in the logarithm of time: its variance at ``t`` is that of
        the published fit, and what it does between two times depends only on the time between them.
        """
        g = self.drift(cells, t)
        clock = self.log_read(t)
        if not math.isfinite(clock):
            raise AimcError(f"{t:g} s after programming is beyond the model", field="time")
        scale = self.read_noise_std(cells.target, t) / math.sqrt(clock)
        if bool((scale > 0).any()):
            start = self.log_read(0.0)
            noise = brownian(key, tuple(g.shape), start, clock - start, g.device)
            noisy = g + g.abs() * scale * noise
            if self.devices == 2:
                noisy = noisy.clamp_min(0.0)
            g = noisy if cells.stuck is None else torch.where(cells.stuck, g, noisy)
        return g


def _checked(t):
    if bool((t < 0).any() if isinstance(t, Tensor) else t < 0):
        raise AimcError(f"is counted from the end of programming and not negative, got {t}", field="time")
    return t


def _log(x):
    return torch.log(x) if isinstance(x, Tensor) else math.log(x)


class DriftingCell(Cell):
    """What the cells with power-law drift and accumulating read noise share; a base, not a cell.

    Fields:
        t0: time between programming and the first drift reading, s.
        t_read: duration of one read, s.
        programming_scale: multiplies the programming error; 0 switches it off.
        drift_scale: multiplies the drift exponents; 0 switches drift off.
        drift_spread_scale: multiplies the spread of the exponents from device to device; 0 makes them alike.
        read_noise_scale: multiplies the read noise; 0 switches it off.
    """

    t0: float = 20.0
    t_read: float = 250e-9
    programming_scale: float = 1.0
    drift_scale: float = 1.0
    drift_spread_scale: float = 1.0
    read_noise_scale: float = 1.0

    def validate(self):
        super().validate()
        for name in ("programming_scale", "drift_scale", "drift_spread_scale", "read_noise_scale"):
            self.require(getattr(self, name) >= 0, name, f"must not be negative, got {getattr(self, name)}")
        self.require(self.t0 > 0, "t0", f"must be positive, got {self.t0}")
        self.require(0 < self.t_read < self.t0, "t_read", f"must be between 0 and t0, got {self.t_read}")

    @property
    @abc.abstractmethod
    def _programming_over_full_scale(self) -> tuple[float, ...]:
        """The published polynomial, before ``programming_scale``."""

    @abc.abstractmethod
    def _exponent(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Published mean and spread of the exponent at r = g/g_max."""

    @abc.abstractmethod
    def _read_noise(self, r: Tensor) -> Tensor:
        """Published amplitude Q of the read noise at r = g_target/g_max."""

    @property
    def programming_polynomial(self) -> tuple[float, ...]:
        return tuple(c * self.programming_scale for c in self._programming_over_full_scale)

    def drift_exponent(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and device-to-device spread of the drift exponent for a target ``g`` in uS."""
        mean, spread = self._exponent(g.abs() / self.g_max)
        return mean * self.drift_scale, spread * (self.drift_scale * self.drift_spread_scale)

    def read_noise_std(self, g_target: Tensor, t: float | Tensor) -> Tensor:
        """``Q(g_target) * sqrt(ln((t + t0 + t_read) / (2 t_read)))``, relative to the drifted conductance."""
        return self._read_noise(g_target.abs() / self.g_max) * (
            math.sqrt(self.log_read(t)) * self.read_noise_scale
        )

    def log_age(self, t):
        return _log((_checked(t) + self.t0) / self.t0)

    def log_read(self, t):
        return _log((_checked(t) + self.t0 + self.t_read) / (2 * self.t_read))


def polynomial(r: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """``c0 + c1 r + c2 r^2 + ...`` by Horner's rule."""
    total = torch.zeros_like(r)
    for c in reversed(coefficients):
        total = total * r + c
    return total


def brownian(key: Key, shape: tuple[int, ...], start: float, elapsed: float, device=None) -> Tensor:
    """Brownian motion at clock ``start + elapsed``, one path per position, with variance equal to the clock.

    A path is a pure function of (key, position, clock): midpoints are drawn top down on a dyadic tree and the last
    step is an exact bridge, so times may be asked in any order, again and again.

    Args:
        key: the chip's key; stream ``read`` is used, one step per tree node.
        shape: shape of the result.
        start: clock at the end of programming, > 0.
        elapsed: clock since then, 0 to :data:`LOG_RANGE`.
    """
    if not 0 <= elapsed <= LOG_RANGE:
        raise AimcError(
            f"read noise is defined up to {LOG_RANGE} e-folds of time after programming (about 5e7 years)",
            field="time",
        )

    def draw(node: int) -> Tensor:
        return normal(key.at("read", step=node), shape, device=device)

    low, high = 0.0, LOG_RANGE
    at_low = draw(0) * math.sqrt(start)
    if elapsed == low:
        return at_low
    at_high = at_low + draw(1) * math.sqrt(LOG_RANGE)
    node = 1
    for _ in range(_DEPTH):
        if elapsed == high:
            return at_high
        middle = (low + high) / 2
        at_middle = (at_low + at_high) / 2 + draw(2 * node) * (math.sqrt(high - low) / 2)
        # Node numbers form a binary heap with two slots a level: 2n draws the midpoint, its children are 2n and 2n+1.
        if elapsed == middle:
            return at_middle
        if elapsed < middle:
            high, at_high, node = middle, at_middle, 2 * node
        else:
            low, at_low, node = middle, at_middle, 2 * node + 1
    share = (elapsed - low) / (high - low)
    spread = math.sqrt((elapsed - low) * (high - elapsed) / (high - low))
    return at_low + (at_high - at_low) * share + draw(2 * node) * spread
