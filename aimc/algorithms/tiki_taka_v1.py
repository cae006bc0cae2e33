"""Tiki-Taka: a fast tile for the gradient, read column by column onto the tile that is the weight."""

from __future__ import annotations

from aimc.algorithms.base import UPDATES, Array, State, Transfers, numbers
from aimc.algorithms.transferring import Transferring, transfer_columns, transfers
from aimc.ops.pulsed_update import PulseTrain, Vectors


class TikiTakaV1(Transferring):
    """Two tiles; what the fast one holds beyond its symmetry point is a running mean of the gradient.

    Source: T. Gokmen and W. Haensch, Front. Neurosci. 14, 103 (2020).

    Fields (see :class:`aimc.algorithms.Transferring` for the rest):
        period: mini-batches between transfers.
        gamma: share of the fast tile in the weight; 0 hides it.
        reset_chance: probability that a column of the fast tile is reset after it was read, to the cell's ``rest``.
        transfer_pulses: how what was read becomes pulses.
        rows: read and write row by row, through the transposed array; ``columns`` then counts rows.

    Example:
        >>> TikiTakaV1(period=2).tile_count
        2
    """

    fast_lr: float = 0.1
    scale_fast_lr: bool = False
    transfer_lr: float = 0.1
    scale_transfer_lr: bool = False
    period: int = 1
    gamma: float = 0.0
    reset_chance: float = 0.0
    transfer_pulses: PulseTrain = PulseTrain()
    rows: bool = False

    @property
    def by_rows(self) -> bool:
        return self.rows

    @property
    def tile_count(self) -> int:
        return 2

    def validate(self):
        super().validate()
        self.require(self.period >= 1, "period", f"must be at least 1, got {self.period}")
        self.require(self.gamma >= 0, "gamma", f"must not be negative, got {self.gamma}")
        self.require(0 <= self.reset_chance <= 1, "reset_chance", f"is in [0, 1], got {self.reset_chance}")
        self.require(
            self.transfer_pulses.kind == "stochastic",
            "transfer_pulses.kind",
            "a direct transfer is stochastic",
        )

    def shares(self, array: Array) -> tuple[float, ...]:
        return (self.gamma, 1.0)

    def step(self, array: Array, state: State, vectors: Vectors, lr: float) -> None:
        self.pulse(array, state, 0, vectors, self.fast_rate(array, lr))
        if (int(numbers(state)[UPDATES]) + 1) % self.period == 0:
            transfer_columns(
                array, state, 0, 1, self.columns_of(array), self.transfer_rate(lr), self.transfer_pulses,
                self.reset_chance, self.rows,
            )  # fmt: skip
        self.finish(array, state, vectors)

    def schedule(
        self, array: Array, updates_per_epoch: int, vectors_per_update: int, lr: float
    ) -> list[Transfers]:
        events, columns = updates_per_epoch / self.period, self.columns_of(array)
        return [
            transfers(array, 0, 1, columns, events, self.transfer_rate(lr), self.transfer_pulses, self.rows)
        ]
