"""From a weight matrix to tiles of conductances: scaling, splitting, partial sums."""

from aimc.crossbar.layout import Layout, TileSize
from aimc.crossbar.mapping import Mapping, column_scale, expand_scale, from_conductance, to_conductance
from aimc.crossbar.wiring import behind_wires

__all__ = [
    "Layout",
    "Mapping",
    "TileSize",
    "behind_wires",
    "column_scale",
    "expand_scale",
    "from_conductance",
    "to_conductance",
]
