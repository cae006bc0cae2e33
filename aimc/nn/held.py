"""Several reads of one layer in one forward pass, with one disturbance of its weights and one gradient at the end."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from aimc import processes
from aimc.crossbar import Layout
from aimc.nn.once import once
from aimc.nn.product import Statistics, Tiles


class _Read(Protocol):
    statistics: Statistics | None
    vectors: int


class HeldPass:
    """What the reads of one forward pass share.

    The backward passes of the reads leave their vectors here, and the weight's gradient is one product of all of them:
    a matrix that is read at every step of a sequence would otherwise be written as often.

    Args:
        weight: the layer's weight, ``[outputs, rows]`` once reshaped.
        tiles: the weights as all reads meet them.
        layout: the split over tiles.
        reads: how many reads there will be.
        input_range: of the layer, before the pass.

    Attributes:
        weight: stands for the weight in the reads' autograd graph.
        vectors: vectors read so far.
        seen: moments of the inputs so far by row tile, while they set the input range.
    """

    def __init__(self, weight: Tensor, tiles: Tiles, layout: Layout, reads: int, input_range: Tensor | None):
        self.tiles, self.layout, self.reads = tiles, layout, max(reads, 1)
        self.first_range = input_range.clone() if input_range is not None else None
        self.vectors = 0
        self.seen: dict[int, Tensor] = {}
        self._totals = torch.zeros(2, layout.row_tiles, dtype=torch.float64, device="cpu")
        self._vectors: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layout.splits]
        self.weight: Tensor = _Gathered.apply(weight, self)  # type: ignore[assignment]

    def saw(self, tile: int, part: Tensor) -> Tensor:
        """Moments of a row tile's inputs, these included."""
        found, before = processes.moments(part), self.seen.get(tile)
        if before is not None:
            found = torch.cat([before[:3] + found[:3], torch.maximum(before[3:], found[3:])])
        self.seen[tile] = found
        return found

    def add(self, read: _Read) -> None:
        """Count a read that has been made."""
        self.vectors += read.vectors
        if read.statistics is not None:
            shares = torch.tensor(
                [read.statistics.clipped, read.statistics.saturated], dtype=torch.float64, device="cpu"
            )
            self._totals += shares * read.vectors

    def statistics(self) -> Statistics:
        """The shares over all reads."""
        clipped, saturated = (self._totals / max(self.vectors, 1)).tolist()
        return Statistics(clipped, saturated)

    def keep(self, tile: int, grad: Tensor, part: Tensor) -> None:
        """Keep a row tile's output gradients ``[vectors, outputs, 1]`` and inputs ``[vectors, 1, rows, 1]``."""
        self._vectors[tile].append((grad.squeeze(2), part.squeeze((1, 3))))

    def gradient(self) -> Tensor | None:
        """The gradient of the weight over all backward passes since the last call, ``[outputs, rows]``."""
        if not self._vectors[0]:
            return None
        like = self._vectors[0][0][0]
        grad = like.new_zeros(self.layout.outputs, self.layout.rows)
        for (a, b), pairs in zip(self.layout.row_splits, self._vectors, strict=True):
            d, x = (torch.cat(side) for side in zip(*pairs, strict=True))
            torch.mm(d.t(), x, out=grad[:, a:b])
            pairs.clear()
        return grad if self.tiles.factor is None else grad.mul_(self.tiles.factor)


class _Gathered(torch.autograd.Function):
    """A stand-in for the weight that no read gives a gradient; its own backward pass, after all of theirs, does."""

    @staticmethod
    def forward(ctx, weight: Tensor, run: HeldPass):
        ctx.set_materialize_grads(False)
        ctx.run, ctx.shape = run, weight.shape
        return weight.new_zeros(())

    @staticmethod
    @once
    def backward(ctx, grad):
        found = ctx.run.gradient()
        return None if found is None else found.view(ctx.shape), None
