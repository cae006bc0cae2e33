"""How a layer's matrix is split over tiles of bounded size."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import torch
from torch import Tensor

from aimc.config import Config


class TileSize(Config):
    """Largest crossbar.

    Fields:
        rows: inputs of one tile; a longer dot product is split, every part passes through its own converter and the
            parts are added digitally.
        columns: outputs of one tile, or null for no limit.
    """

    rows: int = 512
    columns: int | None = 512

    def validate(self):
        self.require(self.rows >= 1, "rows", f"must be at least 1, got {self.rows}")
        self.require(
            self.columns is None or self.columns >= 1, "columns", f"must be at least 1, got {self.columns}"
        )


@dataclasses.dataclass(frozen=True)
class Layout:
    """The split of ``groups`` matrices of ``[outputs/groups, channels * kernel]`` over tiles.

    The order of rows inside a crossbar is free, so a convolution is split along its input channels: each part is an
    ordinary convolution over fewer channels, and nothing is unfolded. Where a channel has more rows than a tile, the
    rows are split as those of a linear layer: a tile then holds some of the taps of one channel, or of two neighbours.

    Groups of a grouped convolution lie block-diagonally on one crossbar where they fit, and are read one after
    another: the rows of the other groups are not driven, so their devices add nothing, and only the rows that are
    driven load the wires. They share converters, hence the compensation factor.

    Attributes:
        outputs: outputs of the layer, all groups together.
        channels: input features, or input channels, of one group.
        kernel: rows per channel: 1 for a linear layer, the kernel's area for a convolution.
        groups: independent matrices.
        row_splits: row boundaries of the row tiles in the flattened matrix, ``((start, stop), ...)``.
        columns: most outputs of one tile.
    """

    outputs: int
    channels: int
    kernel: int
    groups: int
    row_splits: tuple[tuple[int, int], ...]
    columns: int
    size: TileSize

    @classmethod
    def of(cls, size: TileSize, outputs: int, channels: int, kernel: int = 1, groups: int = 1) -> Layout:
        """Split evenly: the fewest row tiles that fit, as equal as whole channels allow, or rows where no channel fits.

        Example:
            >>> Layout.of(TileSize(rows=512), outputs=64, channels=64, kernel=9).splits
            ((0, 32), (32, 64))
            >>> Layout.of(TileSize(rows=512), outputs=64, channels=1, kernel=1024).row_splits
            ((0, 512), (512, 1024))
        """
        unit = kernel if kernel <= size.rows else 1
        units, fit = channels * kernel // unit, size.rows // unit
        parts = max(1, math.ceil(units / fit))
        # Boundaries at multiples of 8 where they fit, which native convolutions like of their channels.
        edges = [round(units * k / parts) for k in range(parts + 1)]
        rounded = [0, *(8 * round(e / 8) for e in edges[1:-1]), units]
        if all(0 < b - a <= fit for a, b in zip(rounded, rounded[1:])):
            edges = rounded
        return cls(
            outputs=outputs,
            channels=channels,
            kernel=kernel,
            groups=groups,
            row_splits=tuple((a * unit, b * unit) for a, b in zip(edges, edges[1:])),
            columns=size.columns or max(outputs, 1),
            size=size,
        )

    @property
    def rows(self) -> int:
        """Rows of one group's matrix."""
        return self.channels * self.kernel

    @property
    def row_tiles(self) -> int:
        return len(self.row_splits)

    @functools.cached_property
    def channel_splits(self) -> tuple[tuple[int, int], ...]:
        """The channels of which each row tile holds rows; neighbours share one where it is split."""
        return tuple((a // self.kernel, math.ceil(b / self.kernel)) for a, b in self.row_splits)

    @functools.cached_property
    def missing(self) -> tuple[tuple[int, int], ...]:
        """For each row tile, the rows of its first and of its last channel that are on other tiles."""
        return tuple(
            (a - first * self.kernel, stop * self.kernel - b)
            for (a, b), (first, stop) in zip(self.row_splits, self.channel_splits)
        )

    @functools.cached_property
    def splits(self) -> tuple[tuple[int, int], ...]:
        """Boundaries of the row tiles in what :meth:`for_tiles` returns."""
        edges = [0, *itertools.accumulate(b - a for a, b in self.channel_splits)]
        return tuple(zip(edges, edges[1:]))

    def for_tiles(self, x: Tensor) -> Tensor:
        """Inputs ``[vectors, groups, channels, positions]`` in which every row tile finds channels of its own."""
        if self.splits == self.channel_splits:
            return x
        return torch.cat([x[:, :, a:b] for a, b in self.channel_splits], 2)

    @property
    def _group_outputs(self) -> int:
        return self.outputs // self.groups

    @functools.cached_property
    def blocks(self) -> tuple[int, ...]:
        """For each row tile, the number of whole groups that share one crossbar, block-diagonally."""
        result = []
        for start, stop in self.row_splits:
            by_rows = self.size.rows // max(stop - start, 1)
            by_columns = self.columns // max(self._group_outputs, 1)
            result.append(max(1, min(by_rows, by_columns, self.groups)))
        return tuple(result)

    @functools.cached_property
    def column_tile(self) -> Tensor:
        """Which physical tile of its row tile an output belongs to, int64 ``[row_tiles, outputs]``."""
        output = torch.arange(self.outputs, device="cpu")
        group, inner = output // max(self._group_outputs, 1), output % max(self._group_outputs, 1)
        per_group = math.ceil(max(self._group_outputs, 1) / self.columns)
        return torch.stack(
            [
                group // blocks if per_group == 1 else group * per_group + inner // self.columns
                for blocks in self.blocks
            ]
        )

    @property
    def tiles(self) -> int:
        """Physical tiles of the layer."""
        return int(sum(int(row.max()) + 1 for row in self.column_tile)) if self.outputs else 0

    @property
    def utilisation(self) -> float:
        """Share of the tiles' cells that hold a weight; unlimited columns count as used."""
        cells = sum(b - a for a, b in self.row_splits) * self.outputs
        return cells / max(1, self.tiles * self.size.rows * min(self.columns, max(self.outputs, 1)))
