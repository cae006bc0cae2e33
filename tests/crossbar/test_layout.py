"""Splits over tiles: every row and output in exactly one tile, none too large, as few as possible."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import aimc
from aimc.crossbar import Layout, TileSize
from tests.helpers import assert_close


@pytest.mark.parametrize(
    "rows, shape, splits, tiles, utilisation",
    [
        # outputs, channels, kernel, groups
        (512, (10, 512, 1, 1), ((0, 512),), 1, 1.0),
        (512, (10, 513, 1, 1), ((0, 256), (256, 513)), 2, 513 / 1024),
        (512, (64, 64, 9, 1), ((0, 32), (32, 64)), 2, 576 / 1024),
        (512, (600, 100, 1, 1), ((0, 100),), 2, 600 * 100 / (2 * 512 * 512)),
        (8, (3, 20, 1, 1), ((0, 8), (8, 16), (16, 20)), 3, 20 / 24),
        (7, (3, 21, 1, 1), ((0, 7), (7, 14), (14, 21)), 3, 1.0),
        (512, (0, 16, 1, 1), ((0, 16),), 0, 0.0),
        # 16 depthwise 3x3 filters: 9 rows, 1 column each; 56 would fit on one tile by rows, 16 are there
        (512, (16, 1, 9, 16), ((0, 1),), 1, 16 * 9 / (512 * 16)),
        # 4 groups of 8 outputs and 9 rows; the tile takes 2 by its rows
        (18, (32, 1, 9, 4), ((0, 1),), 2, 32 * 9 / (2 * 18 * 32)),
    ],
)
def test_examples(rows, shape, splits, tiles, utilisation):
    outputs, channels, kernel, groups = shape
    layout = Layout.of(TileSize(rows=rows), outputs=outputs, channels=channels, kernel=kernel, groups=groups)
    assert layout.splits == splits
    assert layout.row_splits == tuple((a * kernel, b * kernel) for a, b in splits)
    assert (layout.tiles, layout.row_tiles) == (tiles, len(splits))
    assert layout.utilisation == pytest.approx(utilisation)


def test_columns_are_split():
    layout = Layout.of(TileSize(rows=8, columns=4), outputs=10, channels=8)
    assert layout.column_tile.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 2, 2]]
    assert layout.tiles == 3
    assert layout.utilisation == pytest.approx(80 / (3 * 8 * 4))
    unlimited = Layout.of(TileSize(rows=8, columns=None), outputs=10, channels=8)
    assert (unlimited.tiles, unlimited.utilisation) == (1, 1.0)


def test_groups_share_a_tile_block_diagonally():
    layout = Layout.of(TileSize(rows=18, columns=4), outputs=8, channels=1, kernel=9, groups=4)
    assert layout.blocks == (2,)  # two groups fit by rows (2 x 9) and by columns (2 x 2)
    assert layout.column_tile.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    narrow = Layout.of(TileSize(rows=18, columns=2), outputs=8, channels=1, kernel=9, groups=4)
    assert narrow.column_tile.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]]
    tall = Layout.of(TileSize(rows=18, columns=1), outputs=8, channels=1, kernel=9, groups=4)
    assert tall.column_tile.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_a_channel_that_does_not_fit_is_split():
    """As the rows of a linear layer; a tile may hold the end of one channel and the beginning of the next."""
    layout = Layout.of(TileSize(rows=7, columns=4), outputs=10, channels=2, kernel=9)
    assert layout.row_splits == ((0, 6), (6, 12), (12, 18))
    assert layout.channel_splits == ((0, 1), (0, 2), (1, 2)) and layout.splits == ((0, 1), (1, 3), (3, 4))
    assert layout.missing == ((0, 3), (6, 6), (3, 0))
    assert (layout.tiles, layout.utilisation) == (9, pytest.approx(180 / (9 * 7 * 4)))
    x = torch.arange(2.0).view(1, 1, 2, 1)
    assert layout.for_tiles(x).flatten().tolist() == [0, 0, 1, 1]
    whole = Layout.of(TileSize(rows=9), outputs=10, channels=2, kernel=9)
    assert whole.for_tiles(x) is x and whole.missing == ((0, 0), (0, 0))
    patch = aimc.coverage(aimc.convert(nn.Conv2d(3, 16, 32, 32), aimc.presets.ideal())).rows[0]
    assert (patch.tiles, patch.utilisation) == (6, pytest.approx(1.0))


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 600), columns=st.one_of(st.none(), st.integers(1, 40)), outputs=st.integers(1, 30),
    channels=st.integers(1, 1500), kernel=st.integers(1, 25), groups=st.integers(1, 5),
)  # fmt: skip
def test_every_row_and_output_has_one_place(rows, columns, outputs, channels, kernel, groups):
    layout = Layout.of(TileSize(rows=rows, columns=columns), outputs * groups, channels, kernel, groups)
    edges = [a for a, _ in layout.row_splits] + [layout.row_splits[-1][1]]
    assert edges[0] == 0 and edges[-1] == channels * kernel
    assert all(a < b <= a + rows for a, b in zip(edges, edges[1:]))
    fewest = channels / (rows // kernel) if kernel <= rows else channels * kernel / rows
    assert layout.row_tiles == math.ceil(fewest), "no more row tiles than needed"
    assert kernel > rows or layout.missing == ((0, 0),) * layout.row_tiles, "whole channels where they fit"
    for (a, b), (first, stop), (before, after) in zip(
        layout.row_splits, layout.channel_splits, layout.missing
    ):
        assert first * kernel + before == a and stop * kernel - after == b
        assert 0 <= before < kernel and 0 <= after < kernel
    for row, blocks, (a, b) in zip(layout.column_tile, layout.blocks, layout.row_splits):
        counts = torch.bincount(row)
        assert int(counts.min()) > 0
        if columns is not None:
            assert int(counts.max()) <= columns
        assert blocks == 1 or blocks * (b - a) <= rows
    assert 0 < layout.utilisation <= 1
    cells = layout.tiles * rows * min(layout.columns, outputs * groups)
    assert layout.utilisation * cells == pytest.approx(outputs * groups * channels * kernel)


@pytest.mark.parametrize("rows", [3, 9, 18, 512])
@torch.no_grad()
def test_splitting_leaves_the_function_alone(rows):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    for groups in (1, 2, 3):
        digital = nn.Conv2d(6, 12, 3 if rows >= 9 else 1, padding=1, groups=groups).double()
        net = aimc.convert(digital, aimc.presets.ideal().replace(**{"tile.rows": rows})).eval()
        assert_close(f"{groups} groups", net(x), digital(x), atol=1e-12)
        assert net.layout.row_tiles == math.ceil(6 // groups / (rows // digital.weight[0, 0].numel()))
    linear = nn.Linear(50, 4).double()
    net = aimc.convert(linear, aimc.presets.ideal().replace(**{"tile.rows": rows})).eval()
    assert net.layout.row_tiles == math.ceil(50 / rows)
    x = torch.randn(3, 50, dtype=torch.float64)
    assert_close("linear", net(x), linear(x), atol=1e-12)
