"""One frozen object that describes the hardware, and how training sees it."""

from __future__ import annotations

from aimc.cells import PCM, Cell
from aimc.config import Config
from aimc.crossbar import Mapping, TileSize
from aimc.hwa import HardwareAware
from aimc.periphery import ADC, DAC, InputRange, IRDrop


class Hardware(Config):
    """Cells, tiles, converters, and the noise of a read. Every part has its own switch.

    Fields:
        cell: what a memory cell does.
        tile: largest crossbar.
        mapping: digital scales of the weights.
        dac: input converter, or null for exact inputs (then there is no input range either).
        input_range: how the input range is found.
        adc: output converter, or null for exact outputs.
        output_noise: standard deviation of the noise before the ADC, in units of one fully-on input at a full-scale
            weight, per read and output; 0 is off.
        short_term_noise: standard deviation of the weights' fluctuation within one read, times
            ``sqrt(sum_j |w_j| x_j^2)``; 0 is off.
        ir_drop: voltage lost along the wires, or null.
        training: hardware-aware training, or null for none.
    """

    cell: Cell = PCM()
    tile: TileSize = TileSize()
    mapping: Mapping = Mapping()
    dac: DAC | None = DAC()
    input_range: InputRange = InputRange()
    adc: ADC | None = ADC()
    output_noise: float = 0.04
    short_term_noise: float = 0.0175
    ir_drop: IRDrop | None = IRDrop()
    training: HardwareAware | None = HardwareAware()

    def validate(self):
        self.require(self.output_noise >= 0, "output_noise", "must not be negative")
        self.require(self.short_term_noise >= 0, "short_term_noise", "must not be negative")
        self.require(
            self.dac is not None or self.input_range == InputRange(),
            "input_range",
            "has no meaning without a DAC; leave it at its default or give a dac",
        )
