"""Analog layers: ordinary torch modules, one file a layer type."""

from aimc.nn.base import AnalogLayer, ProgrammedWeights, analog_layers, saved_hardware
from aimc.nn.conv import AnalogConv1d, AnalogConv2d, AnalogConv3d
from aimc.nn.linear import AnalogLinear

__all__ = [
    "AnalogConv1d",
    "AnalogConv2d",
    "AnalogConv3d",
    "AnalogLayer",
    "AnalogLinear",
    "ProgrammedWeights",
    "analog_layers",
    "saved_hardware",
]
