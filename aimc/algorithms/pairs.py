"""Cells that can only be pulsed one way, in pairs: a weight is what the second holds more than the first."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from aimc.algorithms.base import (
    UPDATES,
    Algorithm,
    Array,
    State,
    mini_batch,
    numbers,
    one_hot_read,
    reset,
    show,
    tile_of,
    visible,
)  # fmt: skip
from aimc.config import Config
from aimc.ops.pulsed_update import Vectors
from aimc.ops.transfer import nominal_parameters, whole_steps
from aimc.ops.transfer.reference import read
from aimc.random import Key

MINUS, PLUS = 0, 1
"""Tiles of a pair; both take up pulses alone, of a weight that goes down and one that goes up."""


class Pair(Config):
    """Two devices a weight, ``w = plus - minus``: both only grow, so that a pair is reset and written anew in time.

    After every ``refresh``-th mini-batch both devices are read. Where the larger one is above ``upper`` and the smaller
    one above ``lower``, both are reset, and the difference is written by pulses onto one of them, with a read-back
    after each. Pairs with a small partner hold a large weight, and stay.

    Fields:
        refresh: mini-batches between two checks; 0 never refreshes, and pairs end at their bounds.
        upper, lower: of the way from the cell's ``w_min`` to its ``w_max``, nominally.
        tries: pulses that writing anew takes, at most.

    Example:
        >>> Pair(refresh=10).upper
        0.75
    """

    refresh: int = 100
    upper: float = 0.75
    lower: float = 0.25
    tries: int = 32

    def validate(self):
        self.require(self.refresh >= 0, "refresh", f"must not be negative, got {self.refresh}")
        self.require(0 <= self.lower <= self.upper, "lower", f"is between 0 and upper ({self.upper})")
        self.require(0 < self.upper < 1, "upper", f"is between 0 and 1, got {self.upper}")
        self.require(1 <= self.tries <= 1024, "tries", "is between 1 and 1024")


class Paired(Algorithm):
    """Base of the algorithms that also run on pairs of cells which are pulsed one way.

    Fields:
        pair: of cells with ``w_min >= 0``, such as phase-change memory; null is one cell a weight, pulsed both ways.
    """

    pair: Pair | None = None

    @property
    def tile_count(self) -> int:
        return 1 if self.pair is None else 2

    @property
    def one_way(self) -> bool:
        return self.pair is not None

    def shares(self, array: Array) -> tuple[float, ...]:
        return (1.0,) if self.pair is None else (-1.0, 1.0)

    def reach(self, array: Array) -> float:
        return super().reach(array) if self.pair is None else array.cell.w_max - array.cell.w_min

    def program(self, array: Array, state: State, weight: Tensor) -> None:
        super().program(array, state, weight)
        if self.pair is not None:
            write(array, state, weight)
            show(array, state, "program")

    def finish(self, array: Array, state: State, vectors: Vectors) -> None:
        if self.pair is not None:
            refresh(array, state, self.pair)
        super().finish(array, state, vectors)


def write(array: Array, state: State, weight: Tensor) -> None:
    """A weight onto fresh pairs: one of the two holds it, the other one is at its lower bound."""
    for t, sign in ((MINUS, -1.0), (PLUS, 1.0)):
        value = (sign * weight).clamp_min(0) + array.cell.w_min
        state["held"][t].copy_(array.cell.snap(value, state["parameters"][t]))


def halves(vectors: Vectors) -> tuple[Vectors, Vectors]:
    """The products of a batch that lower a weight, and those that raise it, as vectors that send up pulses alone.

    Positive and negative inputs are sent one after the other, as lines have one polarity at a time.
    """
    x, d = vectors.x, vectors.d
    inputs = torch.cat([x.clamp_min(0), x.clamp_max(0)])
    high, low = d.clamp_min(0), d.clamp_max(0)
    return (
        dataclasses.replace(vectors, x=inputs, d=torch.cat([-high, -low])),
        dataclasses.replace(vectors, x=inputs, d=torch.cat([low, high])),
    )


def whole_steps_of_pair(
    array: Array, state: State, chi: Tensor, size: float, most: int, number: int, key: Key
) -> None:
    """Whole multiples of ``size`` leave the matrix ``chi`` and become up pulses on the one or the other of a pair."""
    parts = [(-chi).clamp_min(0), chi.clamp_min(0)]
    for t, part in enumerate(parts):
        found = whole_steps(
            tile_of(array, state, t), part, size, number, key.fold("pair", t), most, array.backend
        )
        numbers(state, "statistics")[t] += found.numpy()
    torch.sub(parts[PLUS], parts[MINUS], out=chi)


def refresh(array: Array, state: State, pair: Pair) -> None:
    """Reset the pairs that are nearly full, and write their differences anew; at the end of a mini-batch."""
    if pair.refresh == 0 or (int(numbers(state)[UPDATES]) + 1) % pair.refresh or 0 in array.shape:
        return
    cell, key = array.cell, array.key.fold("refresh").at(step=mini_batch(state))
    span = cell.w_max - cell.w_min
    before = _read(array, state, key, 0)
    level = (before - cell.w_min) / span
    full = (level.amax(0) > pair.upper) & (level.amin(0) > pair.lower)
    if not bool(full.any()):
        return
    wanted = before[PLUS] - before[MINUS]
    for t in (MINUS, PLUS):
        reset(array, state, t, full, array.key.fold("reset", t).at("decay", step=mini_batch(state)))
    device, up = before.device, torch.ones((), dtype=torch.bool, device=before.device)
    parameters, quiet = (
        nominal_parameters(cell).to(device),
        torch.zeros((), device=device, dtype=torch.float32),
    )
    number = int(numbers(state)[UPDATES]) * pair.tries
    for k in range(pair.tries):
        now = _read(array, state, key, 1 + k, full)
        steps = cell.step(now, parameters, up, quiet) - now
        missing = wanted - (now[PLUS] - now[MINUS])
        # A pulse where it brings the pair nearer.
        chi = torch.zeros_like(missing)
        chi[full & (missing > steps[PLUS] / 2) & (wanted > 0)] = 1.0
        chi[full & (-missing > steps[MINUS] / 2) & (wanted < 0)] = -1.0
        if not bool(chi.any()):
            break
        whole_steps_of_pair(array, state, chi, 1.0, 1, number + k, array.key.fold("refresh"))


def _read(array: Array, state: State, key: Key, k: int, where: Tensor | None = None) -> Tensor:
    """Both devices ``[2, R, C]``, a column at a time; those without a device of interest are left out of the count."""
    values = visible(state)
    place = torch.arange(values.numel(), device=values.device).view(values.shape) + k * values.numel()
    columns = array.shape[1] if where is None else int(where.any(0).sum())
    numbers(state, "reads")[:] += columns
    return read(values.clone(), one_hot_read(array), place, key.at("transfer"))
