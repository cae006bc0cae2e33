"""Analog layers: ordinary torch modules, one file a layer type."""

from aimc.nn.base import AnalogLayer, ProgrammedWeights, analog_layers, saved_hardware
from aimc.nn.composite import AnalogMatrix, Composite, Piece
from aimc.nn.conv import AnalogConv1d, AnalogConv2d, AnalogConv3d
from aimc.nn.linear import AnalogLinear
from aimc.nn.pulsed import (
    CellWeight,
    PulsedConv1d,
    PulsedConv2d,
    PulsedConv3d,
    PulsedLayer,
    PulsedLinear,
    pulsed_layers,
)
from aimc.nn.recurrent import AnalogGRU, AnalogGRUCell, AnalogLSTM, AnalogLSTMCell, AnalogRNN, AnalogRNNCell

__all__ = [
    "AnalogConv1d",
    "AnalogConv2d",
    "AnalogConv3d",
    "AnalogGRU",
    "AnalogGRUCell",
    "AnalogLSTM",
    "AnalogLSTMCell",
    "AnalogLayer",
    "AnalogLinear",
    "AnalogMatrix",
    "AnalogRNN",
    "AnalogRNNCell",
    "CellWeight",
    "Composite",
    "Piece",
    "ProgrammedWeights",
    "PulsedConv1d",
    "PulsedConv2d",
    "PulsedConv3d",
    "PulsedLayer",
    "PulsedLinear",
    "analog_layers",
    "pulsed_layers",
    "saved_hardware",
]
