"""Tiki-Taka with a digital buffer between the fast tile and the weight."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from aimc.algorithms.base import (
    UPDATES,
    VECTORS,
    Array,
    State,
    Transfers,
    mini_batch,
    numbers,
    one_hot_read,
    tile_of,
)  # fmt: skip
from aimc.algorithms.losses import BufferBefore, counts_of, places
from aimc.algorithms.transferring import Transferring
from aimc.config import MOST
from aimc.ops.pulsed_update import Vectors
from aimc.ops.transfer import Buffer, buffered_update


class TikiTakaV2(Transferring):
    """What is read from the fast tile adds up in a digital buffer; its whole parts become single pulses on the weight.

    Source: T. Gokmen, Front. Artif. Intell. 4, 699148 (2021).

    Fields (see :class:`aimc.algorithms.Transferring` for the rest):
        period: of the reads, in ``unit``.
        auto_period: where positive, the period is instead ``auto_period states / C``, rounded and at least 1, so that
            the fast tile takes about as many pulses between two reads of a column whatever the width.
        unit: ``updates`` (mini-batches) or ``vectors``.
        threshold: buffer content that makes a pulse, in steps of the cell.
        auto_granularity: where positive, the threshold is instead ``auto_granularity / (C period)`` steps per
            ``threshold``, with the period in vectors.
        momentum, forget: what stays of the buffer after a pulse: ``momentum`` times all of it, or, if ``forget`` is
            false, all but ``1 - momentum`` pulses' worth.
        most_pulses: pulses per cell and read, at most.
        auto_scale: the fast tile's rate follows the running means of the largest inputs and gradients, so that
            ``fast_lr`` is the share of a full train that an average vector asks for. The layer's rate and
            ``scale_fast_lr`` do not matter to it then.
        auto_momentum: of these means, per mini-batch.
        correct_gradient_magnitudes: divide what is read by the fast tile's rate, so that the buffer collects gradients:
            with ``threshold`` and ``transfer_lr`` at 1 the weight then moves as far as with plain descent, whatever
            ``fast_lr`` is.
        gamma: share of the fast tile in the weight; 0 hides it.

    Example:
        >>> TikiTakaV2(columns="all").tile_count
        2
    """

    fast_lr: float = 0.1
    scale_fast_lr: bool = False
    period: int = 1
    auto_period: float = 0.0
    unit: Literal["updates", "vectors"] = "updates"
    threshold: float = 1.0
    auto_granularity: float = 0.0
    momentum: float = 0.1
    forget: bool = True
    most_pulses: int = 1
    auto_scale: bool = False
    auto_momentum: float = 0.99
    correct_gradient_magnitudes: bool = False
    gamma: float = 0.0

    DIGITAL = ("buffer", "means")

    @property
    def tile_count(self) -> int:
        return 2

    def validate(self):
        super().validate()
        self.require(self.period >= 1, "period", f"must be at least 1, got {self.period}")
        self.require(self.auto_period >= 0, "auto_period", "must not be negative")
        self.require(
            self.auto_period == 0 or self.period == 1, "period", "is set by auto_period; leave it at 1"
        )
        self.require(self.gamma >= 0, "gamma", f"must not be negative, got {self.gamma}")
        self.require(self.threshold > 0, "threshold", "must be positive")
        self.require(self.auto_granularity >= 0, "auto_granularity", "must not be negative")
        self.require(1 <= self.most_pulses <= 1024, "most_pulses", "is between 1 and 1024")
        for name in ("momentum", "auto_momentum"):
            self.require(0 <= getattr(self, name) <= 1, name, "is between 0 and 1")
        self.require(
            self.pulses.kind not in ("none", "none_bounded"), "pulses.kind", "the fast tile takes pulses"
        )
        # The rate grows without bound where gradients vanish, and would take trains along that may grow.
        self.require(
            not self.auto_scale or self.pulses.length_management or self.pulses.fixed_length,
            "auto_scale", "needs pulses.length_management or pulses.fixed_length",
        )  # fmt: skip
        if self.auto_scale:
            self.unused("with auto_scale, whose rate follows the means", "scale_fast_lr")
        else:
            self.unused("without auto_scale", "auto_momentum")

    def fixed_rates(self) -> tuple[str, ...]:
        found = super().fixed_rates()
        return ("fast_lr", *found) if self.auto_scale and "fast_lr" not in found else found

    def shares(self, array: Array) -> tuple[float, ...]:
        return (self.gamma, 1.0)

    def bounds(self, name: str) -> tuple[float | Tensor | None, float | Tensor | None]:
        return (0, None) if name == "visits" else super().bounds(name)

    def extra(self, array: Array, device: torch.device) -> State:
        found = {
            "buffer": torch.zeros(array.shape, device=device, dtype=torch.float32),
            "visits": torch.zeros(1 + array.shape[1], dtype=torch.int64, device="cpu"),
        }
        if self.unit == "updates":  # then what the fast tile holds after a step is what was read
            found |= counts_of(2, device, content=True)
        if self.auto_scale:
            found["means"] = torch.zeros(2, dtype=torch.float64, device="cpu")
        return found

    def program(self, array: Array, state: State, weight: Tensor) -> None:
        super().program(array, state, weight)
        state["buffer"].zero_()

    def period_of(self, array: Array) -> int:
        """Period of the reads of a layer, in ``unit``."""
        if self.auto_period == 0:
            return self.period
        found = self.auto_period * array.cell.states / max(array.shape[1], 1)
        return max(round(min(found, MOST)), 1)  # no training is that long, and counters hold it

    def buffer(self, array: Array, state: State, period: int, lr: float) -> Buffer:
        """The digital side of the transfers; ``period`` in vectors."""
        size = self.threshold * array.cell.granularity
        if self.auto_granularity > 0:
            size *= self.auto_granularity / (array.shape[1] * period)
        return Buffer(
            state["buffer"], state["visits"], self.transfer_rate(lr) / size, self.momentum, self.forget,
            self.most_pulses,
        )  # fmt: skip

    def step(self, array: Array, state: State, vectors: Vectors, lr: float) -> None:
        every = self.period_of(array)
        if self.unit == "vectors":
            period, so_far = every, int(numbers(state)[VECTORS])
        else:  # the last vector of every so many mini-batches
            period = vectors.count * every
            so_far = vectors.count * (int(numbers(state)[UPDATES]) % every)
        rate, fast_lr = 0.0, self.fast_rate(array, lr)
        if self.auto_scale:
            rate = (1 - self.auto_momentum) / max(vectors.count, 1)
            fast_lr = self.fast_lr * self.pulses.length * array.cell.granularity
        before = int(numbers(state, "visits")[0])
        key, transfer_key = (
            array.tile_key(0).at(step=mini_batch(state)),
            array.key.fold("transfer", 0, 1),
        )
        buffer, columns = self.buffer(array, state, max(period, 1), lr), self.columns_of(array)
        if self.correct_gradient_magnitudes:
            share = fast_lr / self._sizes(state, vectors) if self.auto_scale else fast_lr
            buffer = dataclasses.replace(buffer, gain=buffer.gain / (share * array.scale))
        looked = None
        if "content" in state and 0 < so_far + vectors.count == period:
            looked = places(array, int(numbers(state)[UPDATES]) // every, columns)
        watched = BufferBefore(array, state, buffer, looked) if looked is not None else None
        buffered_update(
            tile_of(array, state, 0), tile_of(array, state, 1), vectors, fast_lr, key, transfer_key, buffer,
            so_far, max(period, 1), columns, one_hot_read(array), self.pulses, state.get("means"), rate, array.backend,
            state["statistics"],
        )  # fmt: skip
        numbers(state, "reads")[0] += numbers(state, "visits")[0] - before
        if watched is not None:
            watched.count_dropped(watched.count_answers(), transfer_key)
        self.finish(array, state, vectors)

    def _sizes(self, state: State, vectors: Vectors) -> float:
        """Running means of the largest input and gradient of a vector, multiplied; before the first, of this batch."""
        sizes = [
            mean if mean > 0 or not part.numel() else float(part.abs().max())
            for mean, part in zip(state["means"].tolist(), (vectors.x, vectors.d))
        ]
        return max(sizes[0] * sizes[1], 1e-30)

    def waiting(self, array: Array, state: State) -> float | None:
        return float((state["buffer"].abs() >= 1).double().mean()) if state["buffer"].numel() else 0.0

    def schedule(
        self, array: Array, updates_per_epoch: int, vectors_per_update: int, lr: float
    ) -> list[Transfers]:
        units = updates_per_epoch * (vectors_per_update if self.unit == "vectors" else 1)
        columns = units / self.period_of(array) * self.columns_of(array)
        return [Transfers(0, 1, columns, columns / max(array.shape[1], 1), 0.0, self.most_pulses)]
