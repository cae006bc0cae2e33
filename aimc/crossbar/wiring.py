"""What is left of conductances behind the wires of their tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from aimc.crossbar.layout import Layout
from aimc.periphery import Wires


def behind_wires(conductance: Tensor, layout: Layout, wires: Wires) -> Tensor:
    """What each tile conducts from its rows to its columns.

    The two devices of a pair are on crossbars of their own; so are positive and negative ones of signed devices, and
    the groups of a grouped convolution, which are read one after another.

    Args:
        conductance: uS, ``[devices, outputs, rows]``.
        layout: the split over tiles; the first row and column of each are nearest to their terminals.

    Returns:
        uS, same shape and type.
    """
    signed = len(conductance) == 1
    devices = torch.cat([conductance, -conductance]).clamp_min(0) if signed else conductance
    result = torch.empty_like(devices)
    groups = max(layout.groups, 1)
    group = torch.arange(layout.outputs, device="cpu") // max(layout.outputs // groups, 1)
    for (a, b), tile in zip(layout.row_splits, layout.column_tile, strict=True):
        together = tile * groups + group
        for place in together.unique().tolist():
            columns = (together == place).to(devices.device)
            result[:, columns, a:b] = wires.conductance(devices[:, columns, a:b]).to(result.dtype)
    return result[:1] - result[1:] if signed else result
