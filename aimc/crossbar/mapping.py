"""Weights to conductances and back, and the digital scale that makes it exact."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aimc.cells import Cell
from aimc.config import Config
from aimc.crossbar.layout import Layout


class Mapping(Config):
    """The digital scale s that turns weights into full-scale units, ``w = s * w_hat`` with ``|w_hat| <= 1``.

    Fields:
        scale: ``column``: every column of every tile uses its whole range, ``s_i = max_j |w_ij|``; ``tile``: one scale
            per tile; ``fan_in``: one scale ``sqrt(3 / fan_in)`` per layer, raised where a tile holds a larger weight,
            so that nothing is clipped and the function is unchanged (known as CAWS); ``none``: weights are already in
            full-scale units, those beyond ±1 are clipped.
        learned_gain: a trained digital gain per output, starting at 1 (frozen where the weight is).
    """

    scale: Literal["column", "tile", "fan_in", "none"] = "column"
    learned_gain: bool = True


def column_scale(weight: Tensor, layout: Layout, mapping: Mapping) -> Tensor:
    """The scale of every column of every row tile, ``[row_tiles, outputs]``.

    Args:
        weight: ``[outputs, rows]``.
    """
    largest = [
        weight[:, a:b].abs().amax(1) if b > a else weight.new_zeros(len(weight)) for a, b in layout.row_splits
    ]
    scale = torch.stack(largest)
    if mapping.scale == "column":
        return scale
    if mapping.scale == "none":
        return torch.ones_like(scale)
    tile = layout.column_tile.to(weight.device)
    top = scale.new_zeros(scale.shape).scatter_reduce_(1, tile, scale, "amax")
    per_tile = top.gather(1, tile)
    if mapping.scale == "fan_in":
        return per_tile.clamp_min((3.0 / max(layout.rows, 1)) ** 0.5)
    return per_tile


def expand_scale(scale: Tensor, layout: Layout) -> Tensor:
    """The scale of every weight, ``[outputs, rows]``, from that of every column ``[row_tiles, outputs]``."""
    return torch.cat([scale[k][:, None].expand(-1, b - a) for k, (a, b) in enumerate(layout.row_splits)], 1)


def to_conductance(normalised: Tensor, cell: Cell) -> Tensor:
    """Target conductances of normalised weights, uS, ``[devices, ...]``: the pair (G+, G-), or one signed device.

    Args:
        normalised: weights in [-1, 1], any shape.

    Example:
        >>> from aimc.cells import PCM
        >>> to_conductance(torch.tensor([0.5, -1.0]), PCM())
        tensor([[12.5000,  0.0000],
                [ 0.0000, 25.0000]])
    """
    span = cell.g_max - cell.g_min
    if cell.devices == 1:
        return (normalised * span)[None]
    return cell.g_min + span * torch.stack([normalised.clamp_min(0), (-normalised).clamp_min(0)])


def from_conductance(conductance: Tensor, cell: Cell) -> Tensor:
    """Normalised weights of conductances ``[devices, ...]`` in uS: ``(G+ - G-) / (g_max - g_min)``."""
    span = cell.g_max - cell.g_min
    if cell.devices == 1:
        return conductance[0] / span
    return (conductance[0] - conductance[1]) / span
