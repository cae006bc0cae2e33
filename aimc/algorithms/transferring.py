"""What the algorithms share that collect the gradient on a fast tile and read it into slower ones."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aimc.algorithms.base import (
    Algorithm,
    Array,
    State,
    Transfers,
    numbers,
    one_hot_read,
    reset,
    tile_of,
    visible,
)  # fmt: skip
from aimc.ops.pulsed_update import PulseTrain
from aimc.ops.transfer import Tile, transfer
from aimc.random import uniform


class Transferring(Algorithm):
    """Base. Tile 0 takes the gradient's pulses.

    Fields:
        fast_lr: learning rate of tile 0, relative to the layer's or, with ``scale_fast_lr`` false, on its own.
        transfer_lr: weight that is written per unit that is read, relative to the layer's learning rate or, with
            ``scale_transfer_lr`` false, on its own. A rate on its own is not reached by schedules of the optimizer.
        columns: columns read per event, or ``all``.
    """

    fast_lr: float = 1.0
    scale_fast_lr: bool = True
    transfer_lr: float = 1.0
    scale_transfer_lr: bool = True
    columns: int | Literal["all"] = 1

    def validate(self):
        self.require(self.fast_lr > 0, "fast_lr", f"must be positive, got {self.fast_lr}")
        self.require(self.transfer_lr > 0, "transfer_lr", f"must be positive, got {self.transfer_lr}")
        self.require(self.columns == "all" or self.columns >= 1, "columns", "is at least 1, or 'all'")

    def fast_rate(self, array: Array, lr: float) -> float:
        """Learning rate of tile 0 in units of the cells."""
        return self.fast_lr * (lr if self.scale_fast_lr else 1.0) / array.scale

    def transfer_rate(self, lr: float) -> float:
        return self.transfer_lr * (lr if self.scale_transfer_lr else 1.0)

    def fixed_rates(self) -> tuple[str, ...]:
        return ("fast_lr",) * (not self.scale_fast_lr) + ("transfer_lr",) * (not self.scale_transfer_lr)

    def passing(self, array: Array) -> int:
        return array.shape[1] if self.by_rows else array.shape[0]  # a line that was read

    @property
    def by_rows(self) -> bool:
        """Whether transfers go row by row, through the transposed array."""
        return False

    def lines(self, array: Array) -> tuple[int, str]:
        return (array.shape[0], "rows") if self.by_rows else (array.shape[1], "columns")

    def columns_of(self, array: Array) -> int:
        most, _ = self.lines(array)
        return most if self.columns == "all" else min(self.columns, most)


def transfer_columns(
    array: Array, state: State, source: int, target: int, columns: int, lr: float, train: PulseTrain,
    reset_chance: float = 0.0, by_rows: bool = False,
) -> None:  # fmt: skip
    """The next columns of tile ``source`` as pulses onto tile ``target``; ``state["reads"]`` is the pointer.

    Each column is reset after its read with the probability ``reset_chance``. With ``by_rows`` they are rows.
    """
    reads = numbers(state, "reads")
    number = int(reads[source])
    key, how = array.key.fold("transfer", source, target), one_hot_read(array)
    tile, values = tile_of(array, state, target), visible(state)[source]
    if by_rows:
        visited = torch.arange(number, number + columns, device=values.device) % array.shape[0]
        turned = _turned(tile, visited)
        found = transfer(
            turned, values[visited].t().contiguous(), 0, columns, number, lr, key.fold("rows"), how, train,
            array.backend,
        )  # fmt: skip
        for value, new in ((tile.held, turned.held), (tile.w, turned.w), (tile.counts, turned.counts)):
            value[visited] = new.t()  # w is held, where there is no write noise
    else:
        found = transfer(
            tile, values, number % array.shape[1], columns, number, lr, key, how, train, array.backend
        )
    reads[source] += columns
    numbers(state, "statistics")[target] += found.numpy()
    if reset_chance > 0:
        _reset_lines(array, state, source, number, columns, reset_chance, by_rows)


def _turned(tile: Tile, rows: Tensor) -> Tile:
    """A copy of some rows of a tile, as columns."""
    p, held = tile.parameters, tile.held[rows].t().contiguous()
    same = tile.w.data_ptr() == tile.held.data_ptr()
    return Tile(
        tile.cell, held, held if same else tile.w[rows].t().contiguous(),
        p if p.shape[0] == 1 else p[rows].transpose(0, 1).contiguous(), tile.counts[rows].t().contiguous(),
    )  # fmt: skip


def _reset_lines(
    array: Array, state: State, t: int, number: int, columns: int, chance: float, by_rows: bool
) -> None:
    """Reset some of the lines that were read from visit ``number`` on, drawn by their visits."""
    key = array.key.fold("reset", t)
    drawn = uniform(key.at("algorithm"), columns, offset=number) < chance
    visited = (number + torch.arange(columns, device="cpu"))[drawn] % array.shape[0 if by_rows else 1]
    if not len(visited):
        return
    mask = torch.zeros(array.shape, dtype=torch.bool, device=state["held"].device)
    if by_rows:
        mask[visited] = True
    else:
        mask[:, visited] = True
    reset(array, state, t, mask, key.at("decay", step=number % (1 << 32)))


def transfers(
    array: Array, source: int, target: int, columns: int, events: float, rate: float, train: PulseTrain,
    by_rows: bool = False,
) -> Transfers:  # fmt: skip
    """A line of the schedule: ``events`` per epoch of ``columns`` columns, or rows, at ``rate``."""
    cell, most = array.cell, max(array.shape[0 if by_rows else 1], 1)
    largest = max(abs(cell.w_max), abs(cell.w_min))
    return Transfers(
        source,
        target,
        events * columns,
        events * columns / most,
        rate * largest / cell.granularity,
        train.length,
    )
