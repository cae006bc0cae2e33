"""Mixed precision: the gradient adds up in a digital matrix, and only whole steps of the cell are written."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from aimc.algorithms.base import UPDATES, Array, State, mini_batch, numbers, tile_of
from aimc.algorithms.losses import Before, counts_of, places
from aimc.algorithms.pairs import Paired, whole_steps_of_pair
from aimc.ops.pulsed_update import Vectors, check_vectors
from aimc.ops.transfer import whole_steps
from aimc.random import Key, uniform

_MOST_UNFOLDED = 1 << 22
"""Numbers of a convolution's patches that are laid out at a time where their levels are counted."""


class MixedPrecision(Paired):
    """One tile, or one of pairs, and one digital number for each weight.

    Every whole multiple of the step becomes as many pulses, counted out, not random. ``pulses`` does not matter to it.
    Source: S. R. Nandakumar et al., Front. Neurosci. 14, 406 (2020).

    Fields (see :class:`aimc.algorithms.Paired` for pairs):
        period: mini-batches between transfers.
        threshold: digital content that makes a pulse, in steps of the cell. One pulse uses it up whatever its size, so
            that another one than 1 is a learning rate of ``1 / threshold``.
        most_pulses: pulses per cell and transfer, at most; the rest waits.
        x_bins, d_bins: inputs and gradients are multiplied with so few levels, ``2 floor(bins / 2) + 1`` over plus and
            minus the largest of their vector; 0 is as they are.
        stochastic_bins: whether these levels round stochastically, so that the mean gradient is exact.

    Example:
        >>> MixedPrecision().tile_count
        1
    """

    period: int = 1
    threshold: float = 1.0
    most_pulses: int = 31
    x_bins: int = 0
    d_bins: int = 0
    stochastic_bins: bool = True

    DIGITAL = ("chi",)

    def validate(self):
        self.require(self.period >= 1, "period", f"must be at least 1, got {self.period}")
        self.require(self.threshold > 0, "threshold", "must be positive")
        self.require(1 <= self.most_pulses <= 1024, "most_pulses", "is between 1 and 1024")
        for name in ("x_bins", "d_bins"):
            value = getattr(self, name)
            self.require(value == 0 or 2 <= value <= 65536, name, "is 0 (none), or between 2 and 65536")
        self.unused("here: whole steps are counted out", "pulses")
        if self.x_bins == self.d_bins == 0:
            self.unused("without x_bins and d_bins", "stochastic_bins")

    def extra(self, array: Array, device: torch.device) -> State:
        return {
            "chi": torch.zeros(array.shape, device=device, dtype=torch.float32),
            **counts_of(self.tile_count, device, content=False),
        }

    def program(self, array: Array, state: State, weight: Tensor) -> None:
        super().program(array, state, weight)
        state["chi"].zero_()

    def step(self, array: Array, state: State, vectors: Vectors, lr: float) -> None:
        check_vectors(vectors, array.shape, lr)  # a NaN in chi would stay for good
        state["chi"].sub_(self.gradient(array, state, vectors), alpha=lr / array.scale)
        updates = int(numbers(state)[UPDATES])
        if (updates + 1) % self.period == 0:
            looked = places(array, updates // self.period, array.shape[1])
            before = Before(array, state, looked) if looked is not None else None
            size = self.threshold * array.cell.granularity
            if self.pair is not None:
                whole_steps_of_pair(array, state, state["chi"], size, self.most_pulses, updates, array.key)
            else:
                found = whole_steps(
                    tile_of(array, state, 0),
                    state["chi"],
                    size,
                    updates,
                    array.key,
                    self.most_pulses,
                    array.backend,
                )
                numbers(state, "statistics")[0] += found.numpy()
            if before is not None:
                before.count_answers()
        self.finish(array, state, vectors)

    def gradient(self, array: Array, state: State, vectors: Vectors) -> Tensor:
        """``sum_v d_v x_v^T`` of the levels that inputs and gradients have."""
        if self.x_bins == self.d_bins == 0:
            return vectors.gradient()
        key = array.key.fold("bins").at("algorithm", step=mini_batch(state))
        total = torch.zeros_like(state["chi"])
        each = vectors.count // max(len(vectors.x), 1) * vectors.columns * vectors.groups
        images, seen = max(_MOST_UNFOLDED // max(each, 1), 1), 0
        for i in range(0, len(vectors.x), images):
            part = dataclasses.replace(vectors, x=vectors.x[i : i + images], d=vectors.d[i : i + images])
            x, d = (
                self._levels(values, bins, key.fold(side), seen)
                for values, bins, side in zip(part.unfolded(), (self.x_bins, self.d_bins), "xd", strict=True)
            )
            total += (d.transpose(1, 2) @ x).flatten(0, 1)
            seen += part.count
        return total

    def _levels(self, values: Tensor, bins: int, key: Key, first: int) -> Tensor:
        """Vectors ``[groups, vectors, n]`` on their levels; ``first`` numbers them."""
        half = bins // 2
        if half == 0 or not values.numel():
            return values
        largest = values.abs().amax(2, keepdim=True)
        scaled = values * (half / torch.where(largest > 0, largest, 1.0))
        if self.stochastic_bins:
            groups, count, n = values.shape
            u = uniform(key, (count, groups, n), offset=first * groups * n, device=values.device)
            level = (scaled + u.transpose(0, 1)).floor().clamp(-half, half)
        else:
            level = scaled.round()
        return level * (largest / half)

    def products(self, array: Array) -> int:
        return array.shape[0] * array.shape[1]

    def waiting(self, array: Array, state: State) -> float | None:
        if state["chi"].numel() == 0:
            return 0.0
        return float((state["chi"].abs() >= self.threshold * array.cell.granularity).double().mean())

    def lost(self, state: State) -> float | None:
        return 0.0  # what is not written waits
