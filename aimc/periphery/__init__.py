"""What surrounds the array: converters, input range, analog noise of a read, wire resistance."""

from aimc.periphery.array_io import ArrayIO
from aimc.periphery.converter import ADC, DAC
from aimc.periphery.input_range import InputRange
from aimc.periphery.ir_drop import IRDrop, solve_ladder
from aimc.periphery.wires import Wires

__all__ = ["ADC", "DAC", "ArrayIO", "IRDrop", "InputRange", "Wires", "solve_ladder"]
