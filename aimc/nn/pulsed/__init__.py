"""Layers that train in memory: the weight lives in cells and changes by pulses. One file a layer type."""

from aimc.nn.pulsed.base import PulsedLayer, pulsed_layers, warn_of_overflow
from aimc.nn.pulsed.conv import PulsedConv1d, PulsedConv2d, PulsedConv3d
from aimc.nn.pulsed.linear import PulsedLinear
from aimc.nn.pulsed.weight import CellWeight

__all__ = [
    "CellWeight",
    "PulsedConv1d",
    "PulsedConv2d",
    "PulsedConv3d",
    "PulsedLayer",
    "PulsedLinear",
    "pulsed_layers",
    "warn_of_overflow",
]
