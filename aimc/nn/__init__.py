"""Analog layers: ordinary torch modules, one file a layer type."""

from aimc.nn.attention import AnalogMultiheadAttention
from aimc.nn.base import AnalogLayer, ProgrammedWeights, analog_layers, saved_hardware
from aimc.nn.composite import AnalogMatrix, Composite, Piece
from aimc.nn.conv import AnalogConv1d, AnalogConv2d, AnalogConv3d
from aimc.nn.conv_transposed import (
    AnalogConvTranspose1d,
    AnalogConvTranspose2d,
    AnalogConvTranspose3d,
    PulsedConvTranspose1d,
    PulsedConvTranspose2d,
    PulsedConvTranspose3d,
)
from aimc.nn.linear import AnalogLinear
from aimc.nn.own_forward import OwnForward, digital_copy, own_forward, reached
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
    "AnalogConvTranspose1d",
    "AnalogConvTranspose2d",
    "AnalogConvTranspose3d",
    "AnalogGRU",
    "AnalogGRUCell",
    "AnalogLSTM",
    "AnalogLSTMCell",
    "AnalogLayer",
    "AnalogLinear",
    "AnalogMatrix",
    "AnalogMultiheadAttention",
    "AnalogRNN",
    "AnalogRNNCell",
    "CellWeight",
    "Composite",
    "OwnForward",
    "Piece",
    "ProgrammedWeights",
    "PulsedConv1d",
    "PulsedConv2d",
    "PulsedConv3d",
    "PulsedConvTranspose1d",
    "PulsedConvTranspose2d",
    "PulsedConvTranspose3d",
    "PulsedLayer",
    "PulsedLinear",
    "analog_layers",
    "digital_copy",
    "own_forward",
    "pulsed_layers",
    "reached",
    "saved_hardware",
]
